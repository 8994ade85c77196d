"""Migration 003 renames the tables of workers while the version before it still serves and works.

The statements of that version are in the new names here; `in_old_names` translates them to the names of that time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid5

import psycopg
import pytest
from behaviour.order.support.service import ADA, Service, shipped
from behaviour.order.support.storages import PostgresStorage
from psycopg.errors import UndefinedTable
from support.postgres.database_under_test import database_under_test
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.postgres.event_store import EventStore
from chassis.postgres.migrate import read_migrations
from chassis.settings import Live
from order_service.domain import Order, Status
from order_service.storage import idempotency_keys
from order_service.worker.leadership import Leadership

MIGRATION = dict(read_migrations("order_service"))["order_service/003_outbox"]
RENAMED = r"ALTER TABLE \w+ RENAME COLUMN (\w+) TO (\w+)|ALTER TABLE (\w+) RENAME TO (\w+)"
OLD_NAMES = {found[1] or found[3]: found[0] or found[2] for found in re.findall(RENAMED, MIGRATION)}


def in_old_names(statement: str) -> str:
    """Returns a statement in the names from before the migration."""
    return re.sub(r"\w+", lambda word: OLD_NAMES.get(word[0], word[0]), statement)


ROWS = """SELECT position, order_id, kind, traceparent, attempts, due_at, claimed, created_at FROM outbox
          ORDER BY position"""
LOCK = "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext('outbox'))"
POSITION = "SELECT position FROM projections WHERE name = 'outbox'"
ADD = "INSERT INTO outbox (position, order_id, kind, traceparent) VALUES (%s, %s, %s, 'trace')"
ADVANCE = """INSERT INTO projections (name, position) VALUES ('outbox', %s)
             ON CONFLICT (name) DO UPDATE SET position = excluded.position"""
CLAIM = """UPDATE outbox SET due_at = now() + make_interval(secs => 10), attempts = attempts + 1, claimed = true
           WHERE position IN (SELECT position FROM outbox WHERE due_at <= now()
                              ORDER BY due_at LIMIT 8 FOR UPDATE SKIP LOCKED)
           RETURNING position, order_id, kind, traceparent, attempts"""
TAKE_OVER = "UPDATE outbox SET due_at = now(), claimed = false WHERE claimed AND due_at > now()"
POSTPONE = "UPDATE outbox SET due_at = now() + make_interval(secs => 60), claimed = false WHERE position = 3"
COMPLETE = "DELETE FROM outbox WHERE position = 2"
TAKE_TERM = """INSERT INTO leader_terms AS current (name, leader, ends_at)
                   VALUES ('worker', 'old', clock_timestamp() + interval '2 seconds')
               ON CONFLICT (name) DO UPDATE SET leader = excluded.leader, ends_at = excluded.ends_at
                   WHERE current.leader = excluded.leader OR current.ends_at <= clock_timestamp() RETURNING leader"""
RESIGN = "DELETE FROM leader_terms WHERE name = 'worker' AND leader = 'old'"
LAG = "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM outbox"
WORKER_STATEMENTS = [CLAIM, TAKE_OVER, POSTPONE, COMPLETE, TAKE_TERM, RESIGN, LAG]

MIGRATIONS_BEFORE = {
    package: [found for found in read_migrations(package) if found[0] < "order_service/003"]
    for package in ("chassis", "order_service")
}


@pytest.fixture
async def service(postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """Yields the service on tables as the version before has left them: without migration 003."""
    async with database_under_test(postgres, schema) as server:
        with monkeypatch.context() as patch:
            patch.setattr("chassis.postgres.migrate.read_migrations", MIGRATIONS_BEFORE.get)
            await server.database.migrate("chassis")
            await server.database.migrate("order_service")
        store = await EventStore.open(server.database, write_rows=idempotency_keys.insert_key)
        yield Service(shipped(), PostgresStorage(server, store))


class OldWorker:
    """A connection of a worker of the version before, with its statements prepared."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        connection.prepare_threshold = 0

    def execute(self, statement: str, *values: object) -> psycopg.Cursor[Any]:
        """Executes a statement in the names from before the migration."""
        return self.connection.execute(in_old_names(statement).encode(), values or None)

    def project(self, position: int, event_type: str, order_id: UUID) -> None:
        """Applies an event to the projection, in the transaction that the caller has begun."""
        kind = {"OrderPlaced": "reserve", "OrderCancelled": "release", "OrderRejected": "release"}.get(event_type)
        if kind:
            self.execute(ADD, position, order_id, kind)
        self.execute(ADVANCE, position)


@contextmanager
def old_worker(postgres: Postgres, schema: str) -> Iterator[OldWorker]:
    options = f"-csearch_path={schema}"
    with psycopg.connect(postgres.dsn(dbname=schema, options=options), autocommit=True) as connection:
        connection.execute(f"SET ROLE {schema}".encode())
        yield OldWorker(connection)


def database_of(service: Service) -> Any:
    assert isinstance(service.storage, PostgresStorage)
    return service.storage.database


async def migrate(service: Service) -> None:
    await database_of(service).migrate("order_service")


async def select(service: Service, query: str) -> list[dict[str, Any]]:
    async with database_of(service).connection() as connection:
        return list(await (await connection.execute(query.encode())).fetchall())


async def orders_in_every_state(service: Service, worker: OldWorker) -> list[Order]:
    """Places six orders and leaves the tables as a worker of the version before does while it processes them.

    Their outbox entries: due, claimed and in progress, postponed after four attempts, complete, due after a
    cancellation, and missing because the projection lags.
    """
    orders = [await service.place(f"k{number}") for number in range(4)]
    await service.commands.confirm_order(orders[3].id)
    orders.append(await service.place("k4"))
    await service.commands.cancel_order(ADA, orders[4].id, [])
    for order in orders[3:]:
        await service.user_credit.reserve(order.id, ADA, order.currency, order.total)
    with worker.connection.transaction():
        for position, event in await service.store.since(0):
            worker.project(position, event.type, event.stream)
    orders.append(await service.place("k5"))
    claimed = "due_at = now() + interval '10 seconds', attempts = 1, claimed = true"
    worker.execute(f"UPDATE outbox SET {claimed} WHERE position = 2")
    worker.execute("UPDATE outbox SET due_at = now() + interval '1 hour', attempts = 4 WHERE position = 3")
    worker.execute("DELETE FROM outbox WHERE position IN (4, 6)")
    return orders


async def positions(service: Service) -> list[int]:
    return [row["position"] for row in await select(service, ROWS)]


async def test_the_new_version_continues_with_each_entry_of_the_old_one(
    service: Service, postgres: Postgres, schema: str
) -> None:
    with old_worker(postgres, schema) as worker:
        orders = await orders_in_every_state(service, worker)
    before = await select(service, in_old_names(ROWS))
    states = [(row["position"], row["claimed"], row[OLD_NAMES["attempts"]]) for row in before]
    assert states == [(1, False, 0), (2, True, 1), (3, False, 4), (7, False, 0)]
    await migrate(service)
    after = await select(service, ROWS)
    assert [list(row.values()) for row in after] == [list(row.values()) for row in before]

    await service.project()
    assert await positions(service) == [1, 2, 3, 7, 8]
    await service.work()
    assert await positions(service) == [2, 3]
    assert await service.outbox.take_over() == 1
    await service.work()
    (postponed,) = await select(service, ROWS)
    assert (postponed["position"], postponed["attempts"]) == (3, 4)
    await service.storage.pass_time()
    await service.work()
    assert await positions(service) == []

    statuses = [(await service.queries.get_order(ADA, order.id)).status for order in orders]
    assert statuses == [Status.CONFIRMED] * 4 + [Status.CANCELLED, Status.CONFIRMED]
    held = [order for order in orders if order is not orders[4]]
    assert service.user_credit.held == {order.id: order.total for order in held}
    in_progress = (await service.store.read(orders[1].id))[-1]
    assert in_progress.meta["command_id"] == str(uuid5(orders[1].id, "reserve 2"))
    await service.project()
    head = await service.store.head()
    found = await select(service, "SELECT name, position FROM projections ORDER BY name")
    assert found == [{"name": "orders", "position": head}, {"name": "outbox", "position": head}]


async def test_no_name_of_the_old_version_is_left(service: Service, postgres: Postgres, schema: str) -> None:
    with old_worker(postgres, schema) as worker:
        await orders_in_every_state(service, worker)
    await migrate(service)
    names = """SELECT relname AS name FROM pg_class WHERE relnamespace = current_schema()::regnamespace
               UNION SELECT conname FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
               UNION SELECT attname FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
                   WHERE relnamespace = current_schema()::regnamespace AND NOT attisdropped
               UNION SELECT name FROM projections"""
    found = {row["name"] for row in await select(service, names)}
    assert {
        "outbox",
        "outbox_pkey",
        "outbox_due_idx",
        "outbox_kind_check",
        "leader_terms",
        "leader_terms_pkey",
    } <= found
    old = tuple(OLD_NAMES.values())
    assert [name for name in found if name in old or name.startswith(tuple(f"{name}_" for name in old))] == []


async def test_a_worker_of_the_old_version_changes_nothing_after_the_migration(
    service: Service, postgres: Postgres, schema: str
) -> None:
    with old_worker(postgres, schema) as worker:
        await orders_in_every_state(service, worker)
        for statement in WORKER_STATEMENTS:
            worker.execute(statement)
        await migrate(service)
        before = [await select(service, ROWS), await select(service, "SELECT * FROM projections")]
        for statement in WORKER_STATEMENTS:
            with pytest.raises(UndefinedTable):
                worker.execute(statement)
        (_, first), *_ = await service.store.since(0)
        # Without a stored position it starts at the first event, which always needs an entry.
        assert worker.execute(POSITION).fetchone() is None
        with pytest.raises(UndefinedTable):
            worker.project(1, first.type, first.stream)
    assert before == [await select(service, ROWS), await select(service, "SELECT * FROM projections")]


async def test_the_migration_waits_for_a_batch_of_the_old_projection_in_progress(
    service: Service, postgres: Postgres, schema: str
) -> None:
    order = await service.place()
    with old_worker(postgres, schema) as worker:
        with worker.connection.transaction():
            worker.execute(LOCK)
            worker.execute(POSITION)
            migrating = asyncio.create_task(migrate(service))
            await asyncio.sleep(0.5)
            worker.project(1, "OrderPlaced", order.id)
            assert not migrating.done()
        await asyncio.wait_for(migrating, 20)
    assert await positions(service) == [1]
    assert await select(service, "SELECT * FROM projections") == [{"name": "outbox", "position": 1}]


async def test_a_new_leader_starts_after_the_term_of_the_old_one(
    service: Service, postgres: Postgres, schema: str
) -> None:
    with old_worker(postgres, schema) as worker:
        worker.execute(TAKE_TERM)
        started_at = time.monotonic()
        await migrate(service)
        with pytest.raises(UndefinedTable):
            worker.execute(TAKE_TERM)
    successor = Leadership(database_of(service), "new", Live(shipped(leadership_term_seconds=0.5)))
    stopping = asyncio.Event()
    campaign = asyncio.create_task(successor.campaign(stopping))
    await until("the new worker leads", lambda: successor.is_leader, 20)
    assert time.monotonic() - started_at > 1.8
    stopping.set()
    await campaign


async def test_orders_are_placed_and_read_while_the_migration_waits_for_a_long_reader(
    service: Service, postgres: Postgres, schema: str
) -> None:
    slowest = 0.0
    with old_worker(postgres, schema) as reader:
        with reader.connection.transaction():
            reader.execute(ROWS)
            migrating = asyncio.create_task(migrate(service))
            for number in range(30):
                started_at = time.monotonic()
                order = await service.place(f"k{number}")
                assert await service.queries.get_order(ADA, order.id) == order
                slowest = max(slowest, time.monotonic() - started_at)
                await asyncio.sleep(0.1)
            assert not migrating.done()
        await asyncio.wait_for(migrating, 20)
    assert slowest < 1.0
    assert await positions(service) == []
