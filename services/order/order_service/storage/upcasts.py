"""Upcasts recorded events of earlier schemas to the current schema of their type.

Invariant: a step is pure and reads one event only. A released step is never edited; a change adds the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from chassis.events.record import RecordedEvent

Step = Callable[[RecordedEvent], RecordedEvent]

UNKNOWN = "unknown"
"""Actor and command of an event that was recorded before events had them."""


class UnknownEvent(Exception):  # noqa: N818 - the event is at fault, not the code
    """A newer version of this service recorded the event. It is never skipped: that would lose it."""

    def __init__(self, recorded: RecordedEvent) -> None:
        super().__init__(
            f"{recorded.type} of schema {recorded.schema}, version {recorded.version} of order {recorded.stream}, "
            "was recorded by a newer version of order-service"
        )


def upcast(recorded: RecordedEvent) -> RecordedEvent:
    """Returns the event in the current schema of its type; raises UnknownEvent."""
    steps = _STEPS.get(recorded.type)
    if steps is None or not 1 <= recorded.schema <= len(steps) + 1:
        raise UnknownEvent(recorded)
    current = len(steps) + 1
    if recorded.schema == current:
        return recorded
    for step in steps[recorded.schema - 1 :]:
        recorded = step(recorded)
    return replace(recorded, schema=current)


def _placed_2(recorded: RecordedEvent) -> RecordedEvent:
    return _with_actor(recorded, recorded.data["user_id"])


def _settled_2(recorded: RecordedEvent) -> RecordedEvent:
    return _with_actor(recorded, "system:fulfilment")


def _cancelled_2(recorded: RecordedEvent) -> RecordedEvent:
    # Only the owner could cancel then, but this event does not contain the owner's id.
    return _with_actor(replace(recorded, data={**recorded.data, "reason": "REQUESTED"}), UNKNOWN)


def _with_actor(recorded: RecordedEvent, actor: str) -> RecordedEvent:
    return replace(recorded, meta={"actor": actor, "command_id": UNKNOWN, **recorded.meta})


_STEPS: Mapping[str, tuple[Step, ...]] = {
    "OrderPlaced": (_placed_2,),
    "OrderConfirmed": (_settled_2,),
    "OrderRejected": (_settled_2,),
    "OrderCancelled": (_cancelled_2,),
}
"""The steps from schema 1 to 2, from 2 to 3 and so on, for each type."""

CURRENT: Mapping[str, int] = {kind: len(steps) + 1 for kind, steps in _STEPS.items()}
"""The schema in which this version records each type."""
