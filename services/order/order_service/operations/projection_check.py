"""Compares the read table with a fold of all events, byte for byte, order by order.

Invariant: both sides are read in one transaction, at the position that the table has reached. They are read side by
side in the order of their ids, so the memory in use does not grow with the number of orders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
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
_FETCH_SIZE = 500


@dataclass(frozen=True)
class Comparison:
    """The number of rows at a position, the SHA-256 of all actual and of all expected rows, and how many differ."""

    position: int
    rows: int
    digests: tuple[str, str]
    differences: int


async def begin_snapshot(connection: Connection) -> None:
    """Makes all reads of this transaction see one moment, without a time limit; call it before any other statement."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


async def compare(connection: Connection, position: int) -> Comparison:
    """Compares table `orders` of the search path with the events up to a position."""
    actual, expected = hashlib.sha256(), hashlib.sha256()
    rows = differences = 0
    async for _, (events, row) in joined(read_histories(connection, position), read_rows(connection)):
        order = event_codec.fold(event for _, event in events or ())
        wanted = expected_row(order) if order else None
        differences += row != wanted
        if row is not None:
            rows += 1
            actual.update(f"{row}\n".encode())
        if wanted is not None:
            expected.update(f"{wanted}\n".encode())
    return Comparison(position, rows, (actual.hexdigest(), expected.hexdigest()), differences)


async def read_histories(connection: Connection, upto: int) -> AsyncIterator[tuple[UUID, list[Recorded]]]:
    """Yields each order in the order of ids, with its events up to a position, oldest first."""
    async for order_id, rows in grouped(select(connection, _EVENTS, (upto,))):
        yield order_id, [recorded(row) for row in rows]


async def read_rows(connection: Connection) -> AsyncIterator[tuple[UUID, str]]:
    """Yields the rows of the read table in the form of `expected_row`, even if their values are damaged."""
    async for row in select(connection, _ROWS):
        yield row["id"], _text({**row, "placed_at": row["placed_at"].astimezone(UTC)})


async def select(
    connection: Connection, statement: LiteralString, values: Sequence[object] = ()
) -> AsyncIterator[DictRow]:
    """Yields the rows of a query, of which only a few are in memory at a time."""
    name = hashlib.sha256(statement.encode()).hexdigest()[:16]
    async with connection.cursor(name=name) as cursor:
        cursor.itersize = _FETCH_SIZE
        await cursor.execute(statement, values)
        async for row in cursor:
            yield row


async def grouped(rows: AsyncIterator[DictRow]) -> AsyncIterator[tuple[UUID, list[DictRow]]]:
    """Yields each id with all its rows; they must be sorted by their column `id`."""
    group: list[DictRow] = []
    async for row in rows:
        if group and group[0]["id"] != row["id"]:
            yield group[0]["id"], group
            group = []
        group.append(row)
    if group:
        yield group[0]["id"], group


async def joined(*sources: AsyncIterator[tuple[UUID, Any]]) -> AsyncIterator[tuple[UUID, tuple[Any, ...]]]:
    """Yields each id that a source has, with the value of each source or None; all must be sorted by id."""
    heads = [await anext(source, None) for source in sources]
    while found := [head for head in heads if head]:
        least = min(head[0] for head in found)
        yield least, tuple(head[1] if head and head[0] == least else None for head in heads)
        for number, head in enumerate(heads):
            if head and head[0] == least:
                heads[number] = await anext(sources[number], None)


def expected_row(order: Order) -> str:
    """Returns the row that an order should have, as text."""
    row = {name: getattr(order, name) for name in _COLUMNS}
    return _text({**row, "lines": event_codec.lines_to_json(order.lines)})


Recorded = tuple[int, RecordedEvent]
"""An event with its position."""


def recorded(row: DictRow) -> Recorded:
    """Returns a row of table `events`."""
    return row["notification_id"], from_state(row["id"], row["originator_version"], row["topic"], row["state"])


_COLUMNS = ("id", "user_id", "status", "currency", "lines", "total", "version", "placed_at")
_EVENTS: LiteralString = """
    SELECT notification_id, originator_id AS id, originator_version, topic, state FROM events
    WHERE notification_id <= %s ORDER BY originator_id, originator_version"""
_ROWS: LiteralString = "SELECT id, user_id, status, currency, lines, total, version, placed_at FROM orders ORDER BY id"


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps({name: row[name] for name in _COLUMNS}, sort_keys=True, default=str)
