"""Compares the read table with a fold of all events, byte for byte, and returns the orders that differ.

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
from order_service.domain import Order
from order_service.storage import event_codec

Connection = AsyncConnection[DictRow]
_FETCH_SIZE = 2000


@dataclass(frozen=True)
class Comparison:
    """Actual and expected rows by order, at a position."""

    position: int
    rows: Mapping[UUID, str]
    expected: Mapping[UUID, str]

    @property
    def digests(self) -> tuple[str, str]:
        """The SHA-256 of all actual and of all expected rows; equal only if every byte is."""
        return _digest(self.rows), _digest(self.expected)

    def differences(self) -> dict[UUID, tuple[str, str]]:
        """Returns the actual and the expected row of each order in which they differ."""
        missing = "no row"
        pairs = {
            order_id: (self.rows.get(order_id, missing), self.expected.get(order_id, missing))
            for order_id in sorted({*self.rows, *self.expected})
        }
        return {order_id: (row, expected) for order_id, (row, expected) in pairs.items() if row != expected}


async def begin_snapshot(connection: Connection) -> None:
    """Makes all reads of this transaction see one moment, without a time limit; call it before any other statement."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


async def compare(connection: Connection, position: int) -> Comparison:
    """Compares table `orders` of the search path with the events up to a position."""
    orders: dict[UUID, Order] = {}
    async for _, event in read_events(connection, position):
        orders[event.stream] = event_codec.advance(orders.get(event.stream), event)
    expected = {order_id: expected_row(order) for order_id, order in orders.items()}
    return Comparison(position, await read_rows(connection), expected)


async def read_events(connection: Connection, upto: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
    """Yields every event with a position of at most `upto`, in order."""
    async with connection.cursor(name="every_event") as cursor:
        cursor.itersize = _FETCH_SIZE
        await cursor.execute(_EVENTS, (upto,))
        async for row in cursor:
            stream, version = row["originator_id"], row["originator_version"]
            yield row["notification_id"], from_state(stream, version, row["topic"], row["state"])


async def read_rows(connection: Connection) -> dict[UUID, str]:
    """Returns the rows of the read table in the form of `expected_row`, even if their values are damaged."""
    found: dict[UUID, str] = {}
    async with connection.cursor(name="every_row") as cursor:
        cursor.itersize = _FETCH_SIZE
        await cursor.execute(_ROWS)
        async for row in cursor:
            found[row["id"]] = _text({**row, "placed_at": row["placed_at"].astimezone(UTC)})
    return found


def expected_row(order: Order) -> str:
    """Returns the row that an order should have, as text."""
    row = {name: getattr(order, name) for name in _COLUMNS}
    return _text({**row, "lines": event_codec.lines_to_json(order.lines)})


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
