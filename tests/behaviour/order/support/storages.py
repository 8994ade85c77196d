"""The storages on which the behaviour suites of the Order Service run: memory and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from behaviour.order.support.service import shipped
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres

from chassis.events.memory import MemoryEventStore
from chassis.postgres.event_store import EventStore
from chassis.settings import Live
from order_service.queries import MemoryReadTable, PostgresReadTable
from order_service.storage import idempotency_keys
from order_service.storage.idempotency_keys import MemoryIdempotencyKeys, PostgresIdempotencyKeys
from order_service.worker.outbox import ENTRY_KINDS, Kind, MemoryOutbox, PostgresOutbox
from order_service.worker.projections import ORDERS, OUTBOX
from order_service.worker.projector import Projector

TABLES = "events, orders, projections, outbox, idempotency_keys"


class MemoryStorage:
    """The fakes of the unit tests; `project` does what the projection `outbox` does."""

    kinds: Mapping[str, Kind] = ENTRY_KINDS

    def __init__(self) -> None:
        self.keys = MemoryIdempotencyKeys()
        self.store = MemoryEventStore(write_rows=self.keys.insert_key)
        self.table = MemoryReadTable(self.store)
        self.outbox = MemoryOutbox()
        self._position = 0

    async def project(self) -> None:
        for position, event in await self.store.since(self._position):
            self._position = position
            if kind := self.kinds.get(event.type):
                self.outbox.add(event.stream, kind, event.meta["traceparent"])

    async def add_entry(self, order_id: UUID, kind: Kind) -> None:
        self.outbox.add(order_id, kind)

    async def pending_entries(self) -> int:
        return self.outbox.pending

    async def pass_time(self) -> None:
        self.outbox.pass_time()

    async def expire_keys(self, left: float = -1.0) -> None:
        ends_at = datetime.now(UTC) + timedelta(seconds=left)
        self.keys._keys = {name: replace(key, expires_at=ends_at) for name, key in self.keys._keys.items()}


class PostgresStorage:
    """The adapters of the ports on a real server, with settings as shipped."""

    def __init__(self, server: DatabaseUnderTest, store: EventStore) -> None:
        self.server, self.store, self.database = server, store, server.database
        self.outbox = PostgresOutbox(self.database)
        self.keys, self.table = PostgresIdempotencyKeys(self.database), PostgresReadTable(self.database)
        self.projectors = [Projector(each, store, self.database, Live(shipped())) for each in (ORDERS, OUTBOX)]

    async def project(self) -> None:
        for projector in self.projectors:
            while await projector.step():
                pass

    async def add_entry(self, order_id: UUID, kind: Kind) -> None:
        # Below the positions of events, so that it is not the entry of one of them.
        await self._execute(
            "INSERT INTO outbox (position, order_id, kind, traceparent)"
            " SELECT least(0, min(position)) - 1, %s, %s, '' FROM outbox", order_id, kind)  # fmt: skip

    async def pending_entries(self) -> int:
        async with self.database.connection() as connection:
            row = await (await connection.execute("SELECT count(*) AS pending FROM outbox")).fetchone()
        assert row is not None
        return int(row["pending"])

    async def pass_time(self) -> None:
        await self._execute("UPDATE outbox SET due_at = now()")

    async def expire_keys(self, left: float = -1.0) -> None:
        await self._execute("UPDATE idempotency_keys SET expires_at = now() + make_interval(secs => %s)", left)

    async def empty(self) -> None:
        """Leaves the tables as after the migrations."""
        postgres, schema = self.server.vault.postgres, self.database.name
        statement = f"TRUNCATE {TABLES} RESTART IDENTITY"
        await asyncio.to_thread(postgres.execute, f"SET search_path = {schema}", statement, dbname=schema)

    async def _execute(self, statement: str, *values: object) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement.encode(), values)


def make_tables(postgres: Postgres, schema: str) -> None:
    """Runs the migrations of the Order Service."""

    async def migrate() -> None:
        async with database_under_test(postgres, schema) as server:
            await server.database.migrate("chassis", "order_service")

    asyncio.run(migrate())


@asynccontextmanager
async def on_postgres(postgres: Postgres, schema: str, connections: int = 5) -> AsyncIterator[PostgresStorage]:
    """Yields an empty storage in the tables that `make_tables` has made."""
    async with database_under_test(postgres, schema, connections=connections) as server:
        store = await EventStore.open(server.database, write_rows=idempotency_keys.insert_key, max_size=connections)
        storage = PostgresStorage(server, store)
        await storage.empty()
        yield storage
