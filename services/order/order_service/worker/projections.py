"""The projections of events to tables: `orders` for lists, and `outbox` for the pending calls to the User Service.

Invariant: a batch is applied by at most two statements, however many events it has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from chassis.events.record import RecordedEvent
from order_service.domain import STATUS_AFTER, OrderPlaced, Status
from order_service.storage import event_codec
from order_service.worker.outbox import ENTRY_KINDS

Connection = AsyncConnection[DictRow]
Batch = Sequence[tuple[int, RecordedEvent]]
"""Events with their positions, in commit order."""


@dataclass(frozen=True)
class Projection:
    """A name, under which the position is stored, and a function that applies a batch of events.

    The function may be called in a pipeline, so it reads no results. It may return a cursor; its rows are the `id` and
    `version` of the orders whose row is missing.
    """

    name: str
    apply: Callable[[Connection, Batch], Awaitable[AsyncCursor[DictRow] | None]]


async def project_orders(connection: Connection, batch: Batch) -> AsyncCursor[DictRow] | None:
    """Inserts the rows of new orders with their last state in the batch, and updates the rows of the other orders."""
    placed: dict[UUID, dict[str, Any]] = {}
    changed: dict[UUID, tuple[Status, int]] = {}
    for _, recorded in batch:
        event = event_codec.decode(recorded)
        if isinstance(event, OrderPlaced):
            order = event_codec.advance(None, recorded)
            placed[order.id] = vars(order) | {"lines": Jsonb(event_codec.lines_to_json(order.lines))}
        elif recorded.stream in placed:
            placed[recorded.stream] |= {"status": STATUS_AFTER[type(event)], "version": recorded.version}
        else:
            changed[recorded.stream] = STATUS_AFTER[type(event)], recorded.version
    if placed:
        rows = placed.values()
        await connection.execute(_INSERT, [[row[column] for row in rows] for column in _COLUMNS])
    if not changed:
        return None
    statuses, versions = zip(*changed.values(), strict=True)
    return await connection.execute(_UPDATE, (list(changed), list(statuses), list(versions)))


async def project_outbox(connection: Connection, batch: Batch) -> None:
    """Adds the outbox entries that the events need."""
    entries = [
        (position, recorded.stream, ENTRY_KINDS[recorded.type], recorded.meta.get("traceparent", ""))
        for position, recorded in batch
        if recorded.type in ENTRY_KINDS
    ]
    if entries:
        await connection.execute(_ADD_ENTRIES, [list(column) for column in zip(*entries, strict=True)])


ORDERS = Projection("orders", project_orders)
OUTBOX = Projection("outbox", project_outbox)

_COLUMNS = ("id", "user_id", "status", "currency", "lines", "total", "version", "placed_at")
_INSERT = """INSERT INTO orders (id, user_id, status, currency, lines, total, version, placed_at)
             SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::jsonb[], %s::bigint[],
                                  %s::bigint[], %s::timestamptz[])"""
_UPDATE = """WITH changed AS (SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bigint[]) AS c (id, status, version)),
                  updated AS (UPDATE orders SET status = changed.status, version = changed.version FROM changed
                              WHERE orders.id = changed.id RETURNING orders.id)
             SELECT id, version FROM changed WHERE id NOT IN (SELECT id FROM updated)"""
_ADD_ENTRIES = """INSERT INTO outbox (position, order_id, kind, traceparent)
                  SELECT * FROM unnest(%s::bigint[], %s::uuid[], %s::text[], %s::text[])"""
