"""`rebuild NAME`: builds a projection from all events in a shadow table, which then replaces the live table.

Invariant: the live table changes only in the transaction that switches over. A rebuild may be killed at any moment; the
next one starts from the beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import LiteralString

import structlog
from psycopg import AsyncConnection, OperationalError

from chassis import backoff
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.postgres.database import Database
from chassis.process import Process
from chassis.settings import Live
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.upcasts import UnknownEvent
from order_service.worker.projections import ADVANCE, ORDERS

log = structlog.get_logger(__name__)

_SWITCHES = 60
_PAUSE_SECONDS = 0.4


class RebuildRejected(Exception):  # noqa: N818 - an answer, not a defect
    """The rebuild is not done; the live table is unchanged."""


def print_line(line: str) -> None:
    """Prints a line for the operator, which its prefix marks among the log lines of the process."""
    print(f"> {line}", flush=True)  # noqa: T201 - an operator's command


async def compose(process: Process[Settings], name: str) -> int:
    """Rebuilds a projection; returns 0 if the new table equals the events, 1 if the rebuild is rejected."""
    try:
        _require_rebuildable(name)
        database, store = await open_storage(process)
        async with _exclusive(database) as check_exclusive:
            await Rebuild(database, store, process.settings, check_exclusive).run()
    except (RebuildRejected, UnknownEvent) as error:
        print_line(f"rejected: {error}")
        return 1
    return 0


def _require_rebuildable(name: str) -> None:
    if name != ORDERS.name:
        raise RebuildRejected(f"there is no projection {name!r} with a read table; one of: {ORDERS.name}")


class Rebuild:
    """Rebuilds table `orders`; `check_exclusive` raises RebuildRejected if another rebuild may have started."""

    def __init__(
        self,
        database: Database,
        store: EventLog,
        settings: Live[Settings],
        check_exclusive: Callable[[], Awaitable[None]],
    ) -> None:
        self._check_exclusive = check_exclusive
        self._database = database
        self._store = store
        self._settings = settings

    async def run(self) -> None:
        """Builds, checks and switches over; raises RebuildRejected."""
        started_at = time.monotonic()
        async with self._database.connection() as connection:
            await _make_shadow(connection)
        position = await self._fill_shadow()
        await self._check(_IN_SHADOW, position, "the shadow table")
        print_line(f"shadow table at position {position} equals a fold of all events")
        position = await self._switch(position)
        print_line(f"switched over at position {position}")
        await self._check(_LIVE, None, "the new table")
        print_line(f"done in {time.monotonic() - started_at:.1f} s")

    async def _fill_shadow(self) -> int:
        """Projects onto the shadow table until it has nearly caught up; returns its position."""
        position, last = 0, -1
        while position != last:
            last = position
            async with self._database.connection() as connection:
                await connection.execute(_ONLY_SHADOW)
                position = await self._project(connection, position)
        async with self._database.connection() as connection:
            await connection.execute(_ANALYZE)
        return position

    async def _project(self, connection: Connection, position: int) -> int:
        batch = await self._store.since(position, self._settings.value.projection_batch_size)
        async with connection.pipeline():
            for at, event in batch:
                await ORDERS.apply(connection, at, event)
        return batch[-1][0] if batch else position

    async def _check(self, search_path: LiteralString, position: int | None, table: str) -> None:
        async with self._database.connection() as connection:
            await projection_check.begin_snapshot(connection)
            await connection.execute(search_path)
            found = await projection_check.compare(
                connection, await _live_position(connection) if position is None else position
            )
        actual, expected = found.digests
        print_line(f"{table}: {len(found.rows)} rows, sha256 {actual[:16]}; fold of the events: {expected[:16]}")
        if actual != expected:
            raise RebuildRejected(f"{table} differs from the events in {len(found.differences())} orders")

    async def _switch(self, position: int) -> int:
        """Replaces the live table by the shadow, between two batches of the projection; returns the position."""
        for attempt in range(1, _SWITCHES + 1):
            try:
                async with self._database.connection() as connection:
                    return await self._exchange(connection, position)
            except RpcError as error:
                print_line(f"not switched over, attempt {attempt} of {_SWITCHES}: {error.__cause__ or error}")
            await asyncio.sleep(backoff.delay(1, _PAUSE_SECONDS, _PAUSE_SECONDS))
        raise RebuildRejected("the live table could not be locked; nothing has changed, try again")

    async def _exchange(self, connection: Connection, position: int) -> int:
        await self._check_exclusive()
        await connection.execute(_PROJECTION_WAIT)
        await connection.execute(_HOLD_PROJECTION, (self._database.name, ORDERS.name))
        await connection.execute(_ONLY_SHADOW)
        last = -1
        while position != last:
            last, position = position, await self._project(connection, position)
        await connection.execute(_LIVE)
        await connection.execute(_SHORT_WAIT)
        for statement in _EXCHANGE:
            await connection.execute(statement)
        await connection.execute(ADVANCE, (ORDERS.name, position))
        return position


@asynccontextmanager
async def _exclusive(database: Database) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds the lock of rebuilds and yields a check that it is still held; it ends with the connection."""
    parameters = database.login().keywords()
    async with await AsyncConnection.connect(**parameters, autocommit=True) as connection:
        taken = await (await connection.execute(_REBUILD_LOCK)).fetchone()
        if not taken or not taken["taken"]:
            raise RebuildRejected("another rebuild is under way")

        async def check_exclusive() -> None:
            try:
                await connection.execute("SELECT 1")
            except OperationalError:
                raise RebuildRejected("the connection with the lock of rebuilds is lost; try again") from None

        yield check_exclusive


async def _make_shadow(connection: Connection) -> None:
    """Creates an empty table with all columns, constraints and indexes of the live one, under the same names."""
    await connection.execute(_EMPTY_SHADOW)
    await connection.execute(_SHADOW_TABLE)
    for row in await (await connection.execute(_KEYS_AND_INDEXES)).fetchall():
        await connection.execute(row["statement"].encode())


async def _live_position(connection: Connection) -> int:
    row = await (await connection.execute(_POSITION, (ORDERS.name,))).fetchone()
    return 0 if row is None else int(row["position"])


_REBUILD_LOCK: LiteralString = """
    SELECT pg_try_advisory_lock(hashtext(current_schema()), hashtext('rebuild orders')) AS taken"""
_EMPTY_SHADOW: LiteralString = "DROP SCHEMA IF EXISTS rebuild_orders CASCADE"
_SHADOW_TABLE: LiteralString = """
    CREATE SCHEMA rebuild_orders
        CREATE TABLE rebuild_orders.orders (LIKE order_service.orders INCLUDING ALL EXCLUDING INDEXES)"""
_KEYS_AND_INDEXES: LiteralString = """
    SELECT format('ALTER TABLE rebuild_orders.orders ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
        AS statement
    FROM pg_constraint WHERE conrelid = 'order_service.orders'::regclass AND contype IN ('p', 'u')
    UNION ALL
    SELECT replace(indexdef, ' ON order_service.orders ', ' ON rebuild_orders.orders ') FROM pg_indexes
    WHERE schemaname = 'order_service' AND tablename = 'orders' AND indexname NOT IN (
        SELECT conname FROM pg_constraint WHERE conrelid = 'order_service.orders'::regclass)"""
_ANALYZE: LiteralString = "ANALYZE rebuild_orders.orders"
# Only the shadow is in the search path of writes, so a rebuild without its shadow fails and changes no live table.
_ONLY_SHADOW: LiteralString = "SET LOCAL search_path = rebuild_orders"
_IN_SHADOW: LiteralString = "SET LOCAL search_path = rebuild_orders, order_service"
_LIVE: LiteralString = "SET LOCAL search_path = order_service"
_PROJECTION_WAIT: LiteralString = "SET LOCAL lock_timeout = '2s'"
# While this waits for a long reader, all others queue behind it, so it waits shortly and tries often.
_SHORT_WAIT: LiteralString = "SET LOCAL lock_timeout = '100ms'"
_HOLD_PROJECTION: LiteralString = "SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))"
_EXCHANGE: tuple[LiteralString, ...] = (
    "DROP TABLE order_service.orders",
    "ALTER TABLE rebuild_orders.orders SET SCHEMA order_service",
    "DROP SCHEMA rebuild_orders",
)
_POSITION: LiteralString = "SELECT position FROM projections WHERE name = %s"
