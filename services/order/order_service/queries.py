"""The queries of the Order Service: single orders from their events, lists from the read table.

Invariant: another user's order is reported like an order that does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Protocol
from uuid import UUID

from chassis.events.memory import MemoryEventStore
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from order_service.domain import Order, OrderUnknown, Status
from order_service.storage import event_codec

if TYPE_CHECKING:
    from chassis.postgres.database import Database


@dataclass(frozen=True)
class Page:
    """Orders, newest first; `more` is true if there are older ones."""

    orders: list[Order]
    more: bool


class ReadTable(Protocol):
    """Port: the orders as the projection has written them."""

    async def newest(self, user_id: UUID, status: Status | None, before: UUID | None, limit: int) -> list[Order]:
        """Returns at most `limit` orders of the user with an id below `before`, the highest id first."""


class Queries:
    """The read side."""

    def __init__(self, store: EventLog, table: ReadTable) -> None:
        self._store = store
        self._table = table

    async def get_order(self, user_id: UUID, order_id: UUID) -> Order:
        """Returns the order with every change that was answered before this call; raises OrderUnknown, UnknownEvent."""
        return _owned(user_id, await self._store.read(order_id))

    async def list_order_events(self, user_id: UUID, order_id: UUID) -> list[RecordedEvent]:
        """Returns the events of the order, oldest first; raises OrderUnknown."""
        past = await self._store.read(order_id)
        _owned(user_id, past)
        return past

    async def list_orders(self, user_id: UUID, status: Status | None, before: UUID | None, limit: int) -> Page:
        """Returns a page of the user's orders with an id below `before`."""
        found = await self._table.newest(user_id, status, before, limit + 1)
        return Page(found[:limit], len(found) > limit)


class PostgresReadTable:
    """Table `orders`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self, user_id: UUID, status: Status | None, before: UUID | None, limit: int) -> list[Order]:
        """See ReadTable."""
        values = {"user": user_id, "status": status, "before": before, "limit": limit}
        return [_order(row) for row in await self._database.fetch(_NEWEST, values)]


_NEWEST: LiteralString = """SELECT id, user_id, status, currency, lines, total, version, placed_at FROM orders
             WHERE user_id = %(user)s AND (%(status)s::text IS NULL OR status = %(status)s)
               AND (%(before)s::uuid IS NULL OR id < %(before)s)
             ORDER BY id DESC LIMIT %(limit)s"""


class MemoryReadTable:
    """Fake for unit tests: folds all events at each query, so it never lags."""

    def __init__(self, store: MemoryEventStore) -> None:
        self._store = store

    async def newest(self, user_id: UUID, status: Status | None, before: UUID | None, limit: int) -> list[Order]:
        """See ReadTable."""
        streams = {event.stream for _, event in await self._store.since(0, 1_000_000)}
        orders = [_owned_or_none(user_id, await self._store.read(stream)) for stream in sorted(streams, reverse=True)]
        matching = [order for order in orders if order and status in (None, order.status)]
        return [order for order in matching if before is None or order.id < before][:limit]


def _order(row: dict[str, Any]) -> Order:
    return Order(**{**row, "status": Status(row["status"]), "lines": event_codec.lines_from_json(row["lines"])})


def _owned(user_id: UUID, past: Sequence[RecordedEvent]) -> Order:
    order = _owned_or_none(user_id, past)
    if order is None:
        raise OrderUnknown("there is no such order")
    return order


def _owned_or_none(user_id: UUID, past: Sequence[RecordedEvent]) -> Order | None:
    # The first event has the owner, so that no other user learns that a later event cannot be decoded.
    order = event_codec.fold(past[:1])
    return event_codec.fold(past[1:], order) if order and order.user_id == user_id else None
