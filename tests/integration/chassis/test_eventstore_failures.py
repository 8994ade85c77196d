"""What only the event store on Postgres can get wrong: lost answers, lost connections, leases that end."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from behaviour.event_log import event
from eventsourcing.persistence import OperationalError
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from support.postgres.leased_database import World, started
from support.postgres.private_postgres import Postgres

from chassis.deadline import deadline
from chassis.errors import ConfigurationError, RpcError
from chassis.events.port import AlreadyRecorded, VersionConflict
from chassis.postgres.eventstore import EventStore

from .test_eventstore import postgres_keys, prepare
from .waiting import until


@pytest.fixture
async def store(world: World) -> EventStore:
    await prepare(world)
    return await EventStore.open(world.database, within=postgres_keys)


def lose_the_answer(store: EventStore, times: int) -> None:
    """Let the next appends commit and then fail as if the connection had broken."""
    insert: Callable[..., None] = store._recorder.insert_once
    left = iter(range(times))

    def lossy(*arguments: Any) -> None:
        insert(*arguments)
        if next(left, None) is not None:
            raise OperationalError("server closed the connection unexpectedly")

    store._recorder.insert_once = lossy  # type: ignore[method-assign, assignment]


async def test_while_appends_wait_for_the_table_reads_do_not(store: EventStore, world: World) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)], key="k")
    async with world.database.connection() as connection:
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        waiting = [asyncio.create_task(store.append(each, 0, [event(each, 1)], key=each.hex))
                   for each in (uuid4() for _ in range(8))]  # fmt: skip
        blocked = "SELECT 1 FROM pg_locks WHERE NOT granted"
        await until("they wait", lambda: bool(world.vault.postgres.rows(blocked)))
        began = time.monotonic()
        assert len(await store.read(stream)) == 1
        assert await store.head() == 1
        assert time.monotonic() - began < 2
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_an_append_that_never_gets_its_turn_ends_at_its_deadline(store: EventStore, world: World) -> None:
    async with world.database.connection() as connection:
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        streams = [uuid4() for _ in range(6)]
        with deadline(0.5):
            began = time.monotonic()
            appends = [store.append(each, 0, [event(each, 1)], key=each.hex) for each in streams]
            ended = await asyncio.gather(*appends, return_exceptions=True)
        assert time.monotonic() - began < 2
        assert {error.code for error in ended if isinstance(error, RpcError)} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert len(ended) == sum(isinstance(error, RpcError) for error in ended)
    await store.append(streams[0], 0, [event(streams[0], 1)], key="after")


async def test_without_its_tables_it_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match="migrate"):
        await EventStore.open(world.database)


async def test_an_append_whose_answer_was_lost_is_done_once_and_is_no_conflict(store: EventStore) -> None:
    stream, first = uuid4(), uuid4()
    lose_the_answer(store, 1)
    await store.append(stream, 0, [event(stream, 1), event(stream, 2)], key="k")
    assert [e.version for e in await store.read(stream)] == [1, 2]
    with pytest.raises(AlreadyRecorded):
        await store.append(first, 0, [event(first, 1)], key="k")


async def test_a_lost_answer_does_not_hide_a_real_conflict(store: EventStore) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)])
    lose_the_answer(store, 1)
    with pytest.raises(VersionConflict):
        await store.append(stream, 0, [event(stream, 1)])


async def test_a_refusal_does_not_repeat_the_row(store: EventStore) -> None:
    key = uuid4().hex
    await store.append(uuid4(), 0, [], key=key)
    with pytest.raises(AlreadyRecorded) as refusal:
        await store.append(uuid4(), 0, [], key=key)
    told = "".join(traceback.format_exception(refusal.value))
    assert 'violates unique constraint "keys_key"' in told
    assert key not in told


async def test_each_read_under_a_deadline_is_limited_and_the_server_has_nothing_to_complain_of(
    store: EventStore, postgres: Postgres
) -> None:
    stream = uuid4()
    with deadline(5.0):
        await store.append(stream, 0, [event(stream, 1)], key="k")
        assert [found.version for found in await store.read(stream)] == [1]
    with deadline(1.0), store._datastore.get_connection() as connection:
        connection.execute("SELECT 1")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(10)")
        assert time.monotonic() - began < 5
        left = connection.execute("SHOW statement_timeout").fetchone()
        assert left is not None
        assert left["statement_timeout"].endswith("ms")
    with store._datastore.get_connection() as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == {"statement_timeout": "10s"}
    assert "WARNING" not in (postgres.folder / "log").read_text()


async def test_a_restart_of_the_server_is_survived(store: EventStore, postgres: Postgres) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)])
    postgres.stop()
    await asyncio.to_thread(postgres.start)
    await store.append(stream, 1, [event(stream, 2)])
    assert [e.version for e in await store.read(stream)] == [1, 2]


async def test_a_server_that_is_away_is_unavailable_within_the_deadline_and_heals(
    store: EventStore, world: World, postgres: Postgres
) -> None:
    stream = uuid4()
    postgres.stop(kill=True)
    for ask in (lambda: store.read(stream), world.database.check):
        started_at = time.monotonic()
        with deadline(1.0), pytest.raises(RpcError) as refusal:
            await ask()
        assert refusal.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - started_at < 4.0
    await asyncio.to_thread(postgres.start)
    back = time.monotonic()

    async def both_answer() -> bool:
        try:
            await store.read(stream)
            await world.database.check()
        except RpcError:
            return False
        return True

    await until("store and pool work again", both_answer)
    assert time.monotonic() - back < 5.0


async def test_a_subscription_outlives_a_restart(store: EventStore, postgres: Postgres) -> None:
    stream, found = uuid4(), store.subscribe(0)
    following = asyncio.ensure_future(anext(found))
    await until("it listens", lambda: store._listener._connection is not None)
    postgres.stop()
    await asyncio.to_thread(postgres.start)
    await store.append(stream, 0, [event(stream, 1)])
    assert (await asyncio.wait_for(following, 10))[1].version == 1


async def test_a_subscription_wakes_by_notification(store: EventStore) -> None:
    stream, found = uuid4(), store.subscribe(0)
    following = asyncio.ensure_future(anext(found))
    await until("it listens", lambda: store._listener._connection is not None)
    for _ in range(3):
        await asyncio.sleep(0)
    started_at = time.monotonic()
    await store.append(stream, 0, [event(stream, 1)])
    await following
    assert time.monotonic() - started_at < 0.9, "it looks by itself once a second"


async def test_logins_change_under_load_and_no_request_is_lost(postgres: Postgres, schema: str) -> None:
    """Leases of 2 s that Vault does not renew: every second another user, while readers and writers go on."""
    async with started(postgres, schema, seconds=2.0) as world:
        world.vault.renewable = False
        await prepare(world)
        store = await EventStore.open(world.database, within=postgres_keys)
        stop, done = asyncio.Event(), [0, 0]

        async def write() -> None:
            while not stop.is_set():
                stream = uuid4()
                await store.append(stream, 0, [event(stream, 1)])
                done[0] += 1

        async def read() -> None:
            while not stop.is_set():
                async with world.database.connection() as connection:
                    await connection.execute("SELECT count(*) FROM events")
                done[1] += 1

        async def follow() -> None:
            async for position, _ in store.subscribe(0):
                seen.append(position)

        seen: list[int] = []
        following = asyncio.create_task(follow())
        work = [asyncio.create_task(kind()) for kind in (write, write, read, read)]
        await until("five logins", lambda: len(world.vault.issued) >= 5, 20)
        stop.set()
        world.vault.renewable = True
        await asyncio.gather(*work)
        assert min(done) > 50
        await until("the reader has seen all", lambda: len(seen) == done[0])
        following.cancel()
        # A replacement that was under way may still issue one more login: the newest is looked up each time.
        await until(
            "only the newest login is connected",
            lambda: _users(postgres, schema) == {world.vault.issued[-1].username},
        )


async def test_the_tables_are_what_the_library_would_make(world: World) -> None:
    await prepare(world)
    datastore = PostgresDatastore(world.database.name, **_superuser(world), schema="reference")
    async with world.database.connection() as connection:
        await connection.execute("RESET role")
    world.vault.postgres.execute("CREATE SCHEMA reference", dbname=world.database.name)
    recorder = PostgresApplicationRecorder(datastore, events_table_name="events")
    await asyncio.to_thread(recorder.create_table)
    await asyncio.to_thread(datastore.close)
    ours, theirs = _columns(world, world.database.name), _columns(world, "reference")
    assert ours == theirs
    assert ours


def _superuser(world: World) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": world.vault.postgres.port, "user": "postgres", "password": ""}


def _columns(world: World, schema: str) -> list[tuple[Any, ...]]:
    return world.vault.postgres.rows(
        "SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        f" WHERE c.relnamespace = '{schema}'::regnamespace AND c.relname ~ '^(events|stored)' ORDER BY 1, a.attnum",
        dbname=world.database.name,
    )


def _users(postgres: Postgres, database: str) -> set[str]:
    rows = postgres.rows(f"SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = '{database}'")
    return {row[0] for row in rows}
