"""`rebuild NAME`: builds a projection from all events in a shadow table, then makes the live table equal to it.

Invariant: the live table changes only in the transaction that switches over. The shadow is a temporary table of the
session that also holds the lock of rebuilds: if the rebuild is killed at any moment, both are gone, and the next one
starts from the beginning. No step waits for the end of the events: each projects up to a position that is known when it
starts, so a rebuild ends while orders are placed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import LiteralString

from psycopg import AsyncConnection, OperationalError
from psycopg.errors import LockNotAvailable

from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.postgres.database import IDLE_IN_TRANSACTION, Database
from chassis.process import Process
from chassis.settings import Live
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.upcasts import UnknownEvent
from order_service.worker.projections import ORDERS
from order_service.worker.projector import ADVANCE

# Each round projects the events that arrived during the one before, so little is left for the time under the lock.
_ROUNDS = 3


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
        async with exclusive_session(database) as session:
            await Rebuild(session, database.name, store, process.settings).run()
    except (RebuildRejected, UnknownEvent) as error:
        print_line(f"rejected: {error}")
        return 1
    return 0


def _require_rebuildable(name: str) -> None:
    if name != ORDERS.name:
        raise RebuildRejected(f"there is no projection {name!r} with a read table; one of: {ORDERS.name}")


@asynccontextmanager
async def exclusive_session(database: Database) -> AsyncIterator[Connection]:
    """Opens a session with the lock of rebuilds; raises RebuildRejected if another one has it, or if it is lost."""
    try:
        async with await AsyncConnection.connect(**database.login().keywords(), autocommit=True) as session:
            taken = await (await session.execute(_REBUILD_LOCK)).fetchone()
            if not taken or not taken["taken"]:
                raise RebuildRejected("another rebuild is under way")
            yield session
    except LockNotAvailable:
        raise RebuildRejected("the projection has held its lock for a minute; try again") from None
    except (OperationalError, *IDLE_IN_TRANSACTION) as error:
        raise RebuildRejected("the connection with the lock of rebuilds is lost; try again") from error
    except RpcError as error:
        raise RebuildRejected(f"the events cannot be read, try again: {error}") from error


class Rebuild:
    """Rebuilds table `orders` of a schema in an exclusive session."""

    def __init__(self, session: Connection, schema: str, store: EventLog, settings: Live[Settings]) -> None:
        self._session = session
        self._schema = schema
        self._store = store
        self._settings = settings

    async def run(self) -> None:
        """Builds, checks and switches over; raises RebuildRejected."""
        started_at = time.monotonic()
        await self._session.execute(_SHADOW)
        position = await self._fill_shadow()
        await self._check(f"pg_temp, {self._schema}", position, "the shadow table")
        print_line(f"shadow table at position {position} equals a fold of all events")
        for _ in range(_ROUNDS):
            position = await self._catch_up(position, await self._store.head())
        position = await self._switch(position)
        print_line(f"switched over at position {position}")
        await self._check(self._live, None, "the new table")
        print_line(f"done in {time.monotonic() - started_at:.1f} s")

    @property
    def _live(self) -> str:
        # Without pg_temp in the list, temporary tables would be found first.
        return f"{self._schema}, pg_temp"

    async def _fill_shadow(self) -> int:
        """Projects all events of this moment onto the shadow table; returns its position."""
        position = await self._catch_up(0, await self._store.head())
        await self._session.execute("ANALYZE pg_temp.orders")
        return position

    async def _catch_up(self, position: int, target: int) -> int:
        """Projects the events after a position onto the shadow, at least up to `target`; returns its new position."""
        while position < target:
            batch = await self._store.since(position, self._settings.value.projection_batch_size)
            async with self._session.transaction():
                # Only the shadow is in the search path of writes, so they can change no live table.
                await self._session.execute(_SEARCH, ("pg_temp",))
                async with self._session.pipeline():
                    await ORDERS.apply(self._session, batch)
            position = batch[-1][0] if batch else target
        return position

    async def _check(self, search_path: str, position: int | None, table: str) -> None:
        async with self._session.transaction():
            await projection_check.begin_snapshot(self._session)
            await self._session.execute(_SEARCH, (search_path,))
            at = await self._live_position() if position is None else position
            found = await projection_check.compare(self._session, at)
        actual, expected = found.digests
        print_line(f"{table}: {found.rows} rows, sha256 {actual[:16]}; fold of the events: {expected[:16]}")
        if actual != expected:
            raise RebuildRejected(f"{table} differs from the events in {found.differences} orders")

    async def _switch(self, position: int) -> int:
        """Makes the live table equal to the shadow, between two batches of the projection; returns the position.

        Readers are not blocked. The live position does not move while the lock is held, so the shadow reaches it.
        """
        async with self._session.transaction():
            await self._session.execute(_PROJECTION_WAIT)
            await self._session.execute(_HOLD_PROJECTION, (self._schema, ORDERS.name))
            position = await self._catch_up(position, await self._live_position())
            await self._session.execute(_SEARCH, (self._live,))
            for statement in _EXCHANGE:
                await self._session.execute(statement)
            await self._session.execute(ADVANCE, (ORDERS.name, position))
        return position

    async def _live_position(self) -> int:
        row = await (await self._session.execute(_POSITION, (ORDERS.name,))).fetchone()
        return 0 if row is None else int(row["position"])


_REBUILD_LOCK: LiteralString = """
    SELECT pg_try_advisory_lock(hashtext(current_schema()), hashtext('rebuild orders')) AS taken"""
_SHADOW: LiteralString = "CREATE TEMPORARY TABLE orders (LIKE orders INCLUDING ALL)"
_SEARCH: LiteralString = "SELECT set_config('search_path', %s, true)"
# The projection never waits for its lock, so this one gets it when the current batch ends.
_PROJECTION_WAIT: LiteralString = """
    SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '0', true)"""
_HOLD_PROJECTION: LiteralString = "SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))"
_EXCHANGE: tuple[LiteralString, ...] = (
    """DELETE FROM orders AS live WHERE NOT EXISTS (
           SELECT FROM pg_temp.orders AS shadow
           WHERE shadow.id = live.id AND ROW(shadow.*) IS NOT DISTINCT FROM ROW(live.*))""",
    """INSERT INTO orders SELECT * FROM pg_temp.orders AS shadow
       WHERE NOT EXISTS (SELECT FROM orders AS live WHERE live.id = shadow.id)""",
)
_POSITION: LiteralString = "SELECT position FROM projections WHERE name = %s"
