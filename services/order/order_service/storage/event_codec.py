"""Events as they are recorded, and orders folded from them.

Invariant: what was recorded once is understood for ever: a type keeps its name, and old shapes of it are upcast.
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

FULFILMENT = "system:fulfilment"

_RECALL: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "OrderPlaced": lambda data: OrderPlaced(
        UUID(data["user_id"]), data["currency"], lines(data["lines"]), data["total"]
    ),
    "OrderConfirmed": lambda _: OrderConfirmed(),
    "OrderRejected": lambda data: OrderRejected(data["reason"]),
    "OrderCancelled": lambda data: OrderCancelled(data["reason"]),
}


@dataclass(frozen=True)
class Cause:
    """Who wants it (a user's id, or the part of the system that acts by itself), and by which command."""

    actor: str
    command_id: UUID


def record(stream: UUID, after: int, events: Sequence[Event], cause: Cause) -> list[RecordedEvent]:
    """Events that happen now, to follow version `after`; each says who, when, by which command and in which trace."""
    meta = {
        "occurred_at": datetime.now(UTC).isoformat(),
        "actor": cause.actor,
        "command_id": str(cause.command_id),
        "traceparent": current_traceparent(),
    }
    return [_recorded(stream, version, event, meta) for version, event in enumerate(events, after + 1)]


def recall(recorded: RecordedEvent) -> Event:
    """The event that was recorded, in whatever shape; raises upcasts.UnknownEvent."""
    now = upcast(recorded)
    return _RECALL[now.type](now.data)


def occurred_at(recorded: RecordedEvent) -> datetime:
    """When it was decided."""
    return datetime.fromisoformat(recorded.meta["occurred_at"])


def fold(history: Iterable[RecordedEvent]) -> Order | None:
    """The order after its history; None when it has none. Raises upcasts.UnknownEvent."""
    order: Order | None = None
    for recorded in history:
        order = advance(order, recorded)
    return order


def advance(order: Order | None, recorded: RecordedEvent) -> Order:
    """The order after its next event; None before its first. Raises upcasts.UnknownEvent."""
    return domain.apply(order, recall(recorded), recorded.stream, occurred_at(recorded))


def plain(some: Iterable[Line]) -> list[dict[str, Any]]:
    """Lines as JSON."""
    return [{"sku": line.sku, "quantity": line.quantity, "unit_price": line.unit_price} for line in some]


def lines(data: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Lines from JSON."""
    return tuple(Line(line["sku"], line["quantity"], line["unit_price"]) for line in data)


def _recorded(stream: UUID, version: int, event: Event, meta: Mapping[str, str]) -> RecordedEvent:
    kind = type(event).__name__
    return RecordedEvent(stream, version, kind, _data(event), meta, CURRENT[kind])


def _data(event: Event) -> dict[str, Any]:
    if isinstance(event, OrderPlaced):
        return {
            "user_id": str(event.user_id),
            "currency": event.currency,
            "lines": plain(event.lines),
            "total": event.total,
        }
    return {} if isinstance(event, OrderConfirmed) else {"reason": event.reason}
