"""`rebuild NAME`: a projection made anew from all events in a shadow table, which then takes the live one's place.

Invariant: until the one transaction that switches over, nothing is changed that anybody reads; so a rebuild may be
killed at any moment, and the next one begins anew.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import LiteralString

import structlog
from psycopg import AsyncConnection, OperationalError

from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.postgres.database import Database
from chassis.process import Process
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.upcasts import UnknownEvent
from order_service.worker.projections import ADVANCE, ERRANDS, ORDERS

log = structlog.get_logger(__name__)

_SWITCHES = 60
_PAUSE_SECONDS = 0.3


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """The rebuild does not happen; the live table is as it was."""


def say(line: str) -> None:
    """A line for the operator, among the log lines of the process."""
    print(f"> {line}", flush=True)  # noqa: T201 - an operator's command


async def compose(process: Process[Settings], name: str) -> int:
    """Rebuild the projection of that name; 0 when the new table equals the events, 1 when refused."""
    try:
        _require_rebuildable(name)
        database, store = await open_storage(process)
        async with _alone(database) as still_alone:
            await Rebuild(database, store, lambda: process.settings.value, still_alone).run()
    except (Refused, UnknownEvent) as refusal:
        say(f"refused: {refusal}")
        return 1
    return 0


def _require_rebuildable(name: str) -> None:
    if name == ERRANDS.name:
        raise Refused("errands is a list of what is still to be done: a new one would do everything again")
    if name != ORDERS.name:
        raise Refused(f"there is no projection {name!r}; one of: {ORDERS.name}")


class Rebuild:
    """One rebuild of table `orders`; `alone` raises Refused when another one may have begun."""

    def __init__(
        self,
        database: Database,
        store: EventLog,
        settings: Callable[[], Settings],
        alone: Callable[[], Awaitable[None]],
    ) -> None:
        self._alone = alone
        self._database = database
        self._store = store
        self._settings = settings

    async def run(self) -> None:
        """All of it; raises Refused."""
        began = time.monotonic()
        async with self._database.connection() as connection:
            await _make_shadow(connection)
        position = await self._follow()
        await self._check(_IN_SHADOW, position, "the shadow table")
        say(f"shadow table at position {position} equals a fold of all events")
        position = await self._switch(position)
        say(f"switched over at position {position}")
        await self._check(_LIVE, None, "the new table")
        say(f"done in {time.monotonic() - began:.1f} s")

    async def _follow(self) -> int:
        """Fill the shadow table until it has nearly caught up; the position it is at."""
        position, last = 0, -1
        while position != last:
            last = position
            async with self._database.connection() as connection:
                await connection.execute(_ONLY_SHADOW)
                position = await self._project(connection, position)
        async with self._database.connection() as connection:
            await connection.execute(_MEASURE)
        return position

    async def _project(self, connection: Connection, position: int) -> int:
        batch = await self._store.since(position, self._settings().batch_size)
        async with connection.pipeline():
            for at, event in batch:
                await ORDERS.apply(connection, at, event)
        return batch[-1][0] if batch else position

    async def _check(self, search_path: LiteralString, position: int | None, what: str) -> None:
        async with self._database.connection() as connection:
            await projection_check.snapshot(connection)
            await connection.execute(search_path)
            found = await projection_check.compare(
                connection, await _position(connection) if position is None else position
            )
        is_, should = found.digests
        say(f"{what}: {len(found.rows)} rows, sha256 {is_[:16]}; fold of the events: {should[:16]}")
        if is_ != should:
            raise Refused(f"{what} differs from the events in {len(found.differences())} orders")

    async def _switch(self, position: int) -> int:
        """Put the shadow in the place of the live table, between two batches of the projection."""
        for attempt in range(1, _SWITCHES + 1):
            try:
                async with self._database.connection() as connection:
                    return await self._exchange(connection, position)
            except RpcError as error:
                say(f"not switched over, attempt {attempt} of {_SWITCHES}: {error.__cause__ or error}")
            await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
        raise Refused("the live table was never free; nothing is changed, try again")

    async def _exchange(self, connection: Connection, position: int) -> int:
        await self._alone()
        await connection.execute(_BOUNDED_WAIT)
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
async def _alone(database: Database) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold what only one rebuild can hold, and give what says so; a killed one lets go with its connection."""
    parameters = database.login().parameters()
    async with await AsyncConnection.connect(**parameters, autocommit=True) as connection:
        taken = await (await connection.execute(_ALONE)).fetchone()
        if not taken or not taken["taken"]:
            raise Refused("another rebuild is under way")

        async def still() -> None:
            try:
                await connection.execute("SELECT 1")
            except OperationalError:
                raise Refused("the connection that kept other rebuilds away is gone; try again") from None

        yield still


async def _make_shadow(connection: Connection) -> None:
    """An empty table with every column, constraint and index of the live one, under the same names."""
    await connection.execute(_EMPTY_SHADOW)
    await connection.execute(_SHADOW_TABLE)
    for row in await (await connection.execute(_KEYS_AND_INDEXES)).fetchall():
        await connection.execute(row["statement"].encode())


async def _position(connection: Connection) -> int:
    row = await (await connection.execute(_POSITION, (ORDERS.name,))).fetchone()
    return 0 if row is None else int(row["position"])


_ALONE: LiteralString = "SELECT pg_try_advisory_lock(hashtext(current_schema()), hashtext('rebuild orders')) AS taken"
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
_MEASURE: LiteralString = "ANALYZE rebuild_orders.orders"
# Where rows are written nothing else is in sight: without its shadow a rebuild fails, and touches no live table.
_ONLY_SHADOW: LiteralString = "SET LOCAL search_path = rebuild_orders"
_IN_SHADOW: LiteralString = "SET LOCAL search_path = rebuild_orders, order_service"
_LIVE: LiteralString = "SET LOCAL search_path = order_service"
_BOUNDED_WAIT: LiteralString = "SET LOCAL lock_timeout = '2s'"
# While we wait for a reader that holds the table for long, all others queue up behind us: so not long, but often.
_SHORT_WAIT: LiteralString = "SET LOCAL lock_timeout = '100ms'"
_HOLD_PROJECTION: LiteralString = "SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))"
_EXCHANGE: tuple[LiteralString, ...] = (
    "DROP TABLE order_service.orders",
    "ALTER TABLE rebuild_orders.orders SET SCHEMA order_service",
    "DROP SCHEMA rebuild_orders",
)
_POSITION: LiteralString = "SELECT position FROM projections WHERE name = %s"
