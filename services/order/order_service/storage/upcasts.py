"""Old shapes of events, brought to the shape of today: every change that a recorded event ever went through.

Invariant: a step is pure and sees one event only; once a system has run with it, it is never edited, only followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from chassis.events.record import RecordedEvent

Step = Callable[[RecordedEvent], RecordedEvent]

UNKNOWN = "unknown"
"""Who and by which command, where the event was recorded before these were."""


class UnknownEvent(Exception):  # noqa: N818 - the event is at fault, not the code
    """A newer version of this service recorded the event; this one must neither guess nor pass it by."""

    def __init__(self, recorded: RecordedEvent) -> None:
        super().__init__(
            f"{recorded.type} of schema {recorded.schema}, version {recorded.version} of order {recorded.stream}, "
            "was recorded by a newer version of order-service"
        )


def upcast(recorded: RecordedEvent) -> RecordedEvent:
    """The event as it would be recorded today; raises UnknownEvent."""
    steps = _STEPS.get(recorded.type)
    if steps is None or not 1 <= recorded.schema <= len(steps) + 1:
        raise UnknownEvent(recorded)
    for step in steps[recorded.schema - 1 :]:
        recorded = step(recorded)
    return replace(recorded, schema=len(steps) + 1)


def _placed_2(recorded: RecordedEvent) -> RecordedEvent:
    return _signed(recorded, recorded.data["user_id"])


def _settled_2(recorded: RecordedEvent) -> RecordedEvent:
    return _signed(recorded, "system:fulfilment")


def _cancelled_2(recorded: RecordedEvent) -> RecordedEvent:
    # Whoever cancelled then was the owner and did it on request, but the event alone does not say who that is.
    return _signed(replace(recorded, data={**recorded.data, "reason": "REQUESTED"}), UNKNOWN)


def _signed(recorded: RecordedEvent, actor: str) -> RecordedEvent:
    return replace(recorded, meta={"actor": actor, "command_id": UNKNOWN, **recorded.meta})


_STEPS: Mapping[str, tuple[Step, ...]] = {
    "OrderPlaced": (_placed_2,),
    "OrderConfirmed": (_settled_2,),
    "OrderRejected": (_settled_2,),
    "OrderCancelled": (_cancelled_2,),
}
"""What leads from schema 1 to 2, from 2 to 3 and so on, for each type."""

CURRENT: Mapping[str, int] = {kind: len(steps) + 1 for kind, steps in _STEPS.items()}
"""The schema in which each type is recorded today."""
