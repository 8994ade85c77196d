"""The storages that pass the behaviour suite of the Order Service: memory, and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres

from chassis.events.memory import MemoryEventStore
from chassis.postgres.eventstore import EventStore
from order_service.queries import MemoryReadTable, PostgresReadTable
from order_service.settings import Settings
from order_service.storage import idempotency_keys
from order_service.storage.idempotency_keys import MemoryIdempotencyKeys, PostgresIdempotencyKeys
from order_service.worker.outbox import ENTRY_KINDS, Kind, MemoryOutbox, PostgresOutbox
from order_service.worker.projections import OUTBOX, ORDERS, Projector

TABLES = "events, orders, projections, errands, idempotency_keys"


class MemoryStorage:
    """The fakes of the unit tests; `project` does what the projection of errands does."""

    kinds: Mapping[str, Kind] = ENTRY_KINDS

    def __init__(self) -> None:
        self.keys = MemoryIdempotencyKeys()
        self.store = MemoryEventStore(write_rows=self.keys.keep)
        self.table = MemoryReadTable(self.store)
        self.errands = MemoryOutbox()
        self._position = 0

    async def project(self) -> None:
        for position, event in await self.store.since(self._position):
            self._position = position
            if kind := self.kinds.get(event.type):
                self.errands.add(event.stream, kind, event.meta["traceparent"])

    async def owe(self, order_id: UUID, kind: Kind) -> None:
        self.errands.add(order_id, kind)

    async def pending_entries(self) -> int:
        return self.errands.open

    async def pass_time(self) -> None:
        self.errands.pass_time()

    async def expire_keys(self, left: float = -1.0) -> None:
        ends_at = datetime.now(UTC) + timedelta(seconds=left)
        self.keys._keys = {name: replace(key, expires_at=ends_at) for name, key in self.keys._keys.items()}


class PostgresStorage:
    """The real ports on a real server; `settings` are those of the projectors."""

    def __init__(self, world: DatabaseUnderTest, store: EventStore, settings: Callable[[], Settings]) -> None:
        database = world.database
        self.world, self.store = world, store
        self.keys, self.errands, self.table = PostgresIdempotencyKeys(database), PostgresOutbox(database), PostgresReadTable(database)
        self.projectors = [Projector(each, store, database, settings) for each in (ORDERS, OUTBOX)]

    async def project(self) -> None:
        for projector in self.projectors:
            while await projector.step():
                pass

    async def owe(self, order_id: UUID, kind: Kind) -> None:
        # Below the positions of events, so that it is no errand of one of them.
        await self._execute(
            "INSERT INTO errands (position, order_id, kind, traceparent)"
            " SELECT least(0, min(position)) - 1, %s, %s, '' FROM errands", order_id, kind)  # fmt: skip

    async def pending_entries(self) -> int:
        async with self.world.database.connection() as connection:
            row = await (await connection.execute("SELECT count(*) AS open FROM errands")).fetchone()
        assert row is not None
        return int(row["open"])

    async def pass_time(self) -> None:
        await self._execute("UPDATE errands SET due_at = now()")

    async def expire_keys(self, left: float = -1.0) -> None:
        await self._execute("UPDATE idempotency_keys SET expires_at = now() + make_interval(secs => %s)", left)

    async def empty(self) -> None:
        """As after the migrations."""
        await self._execute(f"TRUNCATE {TABLES} RESTART IDENTITY")

    async def _execute(self, statement: str, *values: object) -> None:
        async with self.world.database.connection() as connection:
            await connection.execute(statement.encode(), values)


def make_tables(postgres: Postgres, schema: str) -> None:
    """Run the migrations of the Order Service."""

    async def migrate() -> None:
        async with database_under_test(postgres, schema) as world:
            await world.database.migrate("chassis")
            await world.database.migrate("order_service")

    asyncio.run(migrate())


@asynccontextmanager
async def on_postgres(
    postgres: Postgres, schema: str, settings: Callable[[], Settings], connections: int = 5
) -> AsyncIterator[PostgresStorage]:
    """Empty storage in tables that `make_tables` has made, until the block ends."""
    async with database_under_test(postgres, schema, connections=connections) as world:
        store = await EventStore.open(world.database, write_rows=idempotency_keys.keep, max_size=connections)
        storage = PostgresStorage(world, store, settings)
        await storage.empty()
        yield storage
