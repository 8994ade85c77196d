"""The read table against a fold of all events: the same orders, byte for byte, or which of them differ.

Invariant: both sides are read in one transaction, at the position that the table has reached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from chassis.events.record import RecordedEvent, from_state
from order_service import domain
from order_service.domain import Order
from order_service.storage import event_codec

Connection = AsyncConnection[DictRow]
_AT_ONCE = 2000


@dataclass(frozen=True)
class Comparison:
    """Rows by order as they are and as they should be, at a position."""

    position: int
    rows: Mapping[UUID, str]
    folded: Mapping[UUID, str]

    @property
    def digests(self) -> tuple[str, str]:
        """SHA-256 of all rows and of the whole fold; equal only when every byte is."""
        return _digest(self.rows), _digest(self.folded)

    def differences(self) -> dict[UUID, tuple[str, str]]:
        """What is and what should be, for each order where they differ."""
        nothing = "no row"
        both = {order_id: (self.rows.get(order_id, nothing), self.folded.get(order_id, nothing)) for order_id in
                sorted({*self.rows, *self.folded})}  # fmt: skip
        return {order_id: (found, wanted) for order_id, (found, wanted) in both.items() if found != wanted}


async def snapshot(connection: Connection) -> None:
    """Make the transaction that begins here see one moment for as long as it takes; nothing was asked in it yet."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


async def compare(connection: Connection, position: int) -> Comparison:
    """Table `orders`, wherever the search path finds it, against the events up to a position."""
    orders: dict[UUID, Order] = {}
    async for _, event in events(connection, position):
        before = orders.get(event.stream)
        at = event_codec.occurred_at(event)
        orders[event.stream] = domain.apply(before, event_codec.recall(event), event.stream, at)
    return Comparison(position, await rows(connection), {order_id: line(order) for order_id, order in orders.items()})


async def events(connection: Connection, upto: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
    """Every event with a position of at most `upto`, in order."""
    async with connection.cursor(name="every_event") as cursor:
        cursor.itersize = _AT_ONCE
        await cursor.execute(_EVENTS, (upto,))
        async for row in cursor:
            stream, version = row["originator_id"], row["originator_version"]
            yield row["notification_id"], from_state(stream, version, row["topic"], row["state"])


async def rows(connection: Connection) -> dict[UUID, str]:
    """The read table in the form of `line`, whatever a damaged row holds."""
    found: dict[UUID, str] = {}
    async with connection.cursor(name="every_row") as cursor:
        cursor.itersize = _AT_ONCE
        await cursor.execute(_ROWS)
        async for row in cursor:
            found[row["id"]] = _text({**row, "placed_at": row["placed_at"].astimezone(UTC)})
    return found


def line(order: Order) -> str:
    """An order as the row that it should have."""
    return _text({**{name: getattr(order, name) for name in _COLUMNS}, "lines": event_codec.plain(order.lines)})


_COLUMNS = ("id", "user_id", "status", "currency", "lines", "total", "version", "placed_at")
_EVENTS: LiteralString = """
    SELECT notification_id, originator_id, originator_version, topic, state FROM events
    WHERE notification_id <= %s ORDER BY notification_id"""
_ROWS: LiteralString = "SELECT id, user_id, status, currency, lines, total, version, placed_at FROM orders"


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps({name: row[name] for name in _COLUMNS}, sort_keys=True, default=str)


def _digest(rows_by_id: Mapping[UUID, str]) -> str:
    digest = hashlib.sha256()
    for order_id in sorted(rows_by_id):
        digest.update(f"{rows_by_id[order_id]}\n".encode())
    return digest.hexdigest()
