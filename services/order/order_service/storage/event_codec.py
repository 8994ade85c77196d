"""Encodes domain events as recorded events, decodes them, and folds them to an order.

Invariant: every event ever recorded can be decoded: a type keeps its name, and its old schemas are upcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from chassis.events.record import RecordedEvent
from chassis.telemetry.traces import current_traceparent
from order_service import domain
from order_service.domain import (
    Event,
    Line,
    Order,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
)
from order_service.storage.upcasts import CURRENT, upcast

PROCESS_MANAGER = "system:fulfilment"
"""The actor of events that the process manager causes; stored in events, so the text never changes."""

_DECODERS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "OrderPlaced": lambda data: OrderPlaced(
        UUID(data["user_id"]), data["currency"], lines_from_json(data["lines"]), data["total"]
    ),
    "OrderConfirmed": lambda _: OrderConfirmed(),
    "OrderRejected": lambda data: OrderRejected(data["reason"]),
    "OrderCancelled": lambda data: OrderCancelled(data["reason"]),
}


@dataclass(frozen=True)
class Cause:
    """The actor (a user's id or a part of the system) and the command that cause an event."""

    actor: str
    command_id: UUID


def encode(stream: UUID, after: int, events: Sequence[Event], cause: Cause) -> list[RecordedEvent]:
    """Encodes events that happen now and follow version `after`, with time, actor, command and trace as metadata."""
    meta = {
        "occurred_at": datetime.now(UTC).isoformat(),
        "actor": cause.actor,
        "command_id": str(cause.command_id),
        "traceparent": current_traceparent(),
    }
    return [_encoded(stream, version, event, meta) for version, event in enumerate(events, after + 1)]


def decode(recorded: RecordedEvent) -> Event:
    """Decodes a recorded event of any schema; raises upcasts.UnknownEvent."""
    current = upcast(recorded)
    return _DECODERS[current.type](current.data)


def occurred_at(recorded: RecordedEvent) -> datetime:
    """Returns the time at which the event was decided."""
    return datetime.fromisoformat(recorded.meta["occurred_at"])


def fold(history: Iterable[RecordedEvent], order: Order | None = None) -> Order | None:
    """Returns the order after its next events, None before the first one; raises upcasts.UnknownEvent."""
    for recorded in history:
        order = advance(order, recorded)
    return order


def advance(order: Order | None, recorded: RecordedEvent) -> Order:
    """Returns the order (None before the first event) after its next event; raises upcasts.UnknownEvent."""
    return domain.apply(order, decode(recorded), recorded.stream, occurred_at(recorded))


def lines_to_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Converts lines to JSON values."""
    return [{"sku": line.sku, "quantity": line.quantity, "unit_price": line.unit_price} for line in lines]


def lines_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Converts JSON values to lines."""
    return tuple(Line(line["sku"], line["quantity"], line["unit_price"]) for line in data)


def _encoded(stream: UUID, version: int, event: Event, meta: Mapping[str, str]) -> RecordedEvent:
    kind = type(event).__name__
    return RecordedEvent(stream, version, kind, _data(event), meta, CURRENT[kind])


def _data(event: Event) -> dict[str, Any]:
    if isinstance(event, OrderPlaced):
        return {
            "user_id": str(event.user_id),
            "currency": event.currency,
            "lines": lines_to_json(event.lines),
            "total": event.total,
        }
    return {} if isinstance(event, OrderConfirmed) else {"reason": event.reason}
