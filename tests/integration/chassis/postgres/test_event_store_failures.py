"""Failures that only the event store on Postgres can have: lost results, lost connections, expiring credentials."""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from behaviour.event_log import event
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.events.port import AlreadyRecorded, VersionConflict
from chassis.postgres import event_recorder, event_store
from chassis.postgres.event_store import EventStore

from .test_event_store import create_tables, insert_key


@pytest.fixture
async def store(under_test: DatabaseUnderTest) -> EventStore:
    await create_tables(under_test)
    return await EventStore.open(under_test.database, write_rows=insert_key)


def lose_results(store: EventStore, times: int) -> None:
    """Make the next appends commit and then fail as if the connection had been lost."""
    insert = store._recorder.insert
    left = iter(range(times))

    async def lossy(*arguments: Any) -> None:
        await insert(*arguments)
        if next(left, None) is not None:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    store._recorder.insert = lossy  # type: ignore[method-assign]


async def test_reads_do_not_wait_while_appends_wait_for_the_table_lock(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)], key="k")
    async with under_test.database.connection() as connection:
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        waiting = [asyncio.create_task(store.append(each, 0, [event(each, 1)], key=each.hex))
                   for each in (uuid4() for _ in range(8))]  # fmt: skip
        blocked = "SELECT 1 FROM pg_locks WHERE NOT granted"
        await until("they wait", lambda: bool(under_test.vault.postgres.rows(blocked)))
        began = time.monotonic()
        assert len(await store.read(stream)) == 1
        assert await store.head() == 1
        assert time.monotonic() - began < 2
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_a_cancelled_append_is_cancelled_in_postgres_before_the_next_one_starts(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    """One append and those that share a transaction wait for the lock, also if callers give up, so reads go on."""

    def waiting() -> int:
        return len(under_test.vault.postgres.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))

    async with under_test.database.connection() as connection:
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        for _ in range(3):
            appends = [asyncio.create_task(store.append(each, 0, [event(each, 1)], key=each.hex))
                       for each in (uuid4() for _ in range(6))]  # fmt: skip
            await until("the first and the others wait", lambda: waiting() == 2)
            for append in appends:
                append.cancel()
            following = asyncio.create_task(store.append(stream := uuid4(), 0, [event(stream, 1)], key=stream.hex))
            await asyncio.wait(appends)
            assert all(append.cancelled() for append in appends)
            await until("only the following one waits", lambda: waiting() <= 1, 1)
            following.cancel()
            await asyncio.wait([following])
            await until("none waits", lambda: waiting() == 0, 1)
            async with asyncio.timeout(1):
                assert await store.head() == 0
    await store.append(stream := uuid4(), 0, [event(stream, 1)], key="after")


async def test_an_append_that_waits_for_other_appends_fails_at_its_deadline(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    async with under_test.database.connection() as connection:
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


@pytest.mark.parametrize("seconds", [0.1, 1.0, None], ids=["passed", "less than the pause", "control: none"])
async def test_a_lost_connection_is_retried_only_if_the_deadline_leaves_time_for_the_pause(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, seconds: float | None
) -> None:
    async def lost(*_: Any) -> int:
        await asyncio.sleep(0.2)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    store._recorder.head = lost  # type: ignore[method-assign]
    monkeypatch.setattr(event_store, "_RETRY_SECONDS", (4.0, 4.0))
    began = time.monotonic()
    with deadline(seconds), pytest.raises(RpcError):
        await store.head()
    assert (time.monotonic() - began > 2) is (seconds is None)


async def test_an_append_whose_result_was_lost_happens_once_and_is_no_conflict(store: EventStore) -> None:
    stream, first = uuid4(), uuid4()
    lose_results(store, 1)
    await store.append(stream, 0, [event(stream, 1), event(stream, 2)], key="k")
    assert [e.version for e in await store.read(stream)] == [1, 2]
    with pytest.raises(AlreadyRecorded):
        await store.append(first, 0, [event(first, 1)], key="k")


async def test_a_lost_result_does_not_hide_a_real_conflict(store: EventStore) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)])
    lose_results(store, 1)
    with pytest.raises(VersionConflict):
        await store.append(stream, 0, [event(stream, 1)])


async def test_an_error_does_not_contain_the_row(store: EventStore) -> None:
    key = uuid4().hex
    await store.append(uuid4(), 0, [], key=key)
    with pytest.raises(AlreadyRecorded) as raised:
        await store.append(uuid4(), 0, [], key=key)
    text = "".join(traceback.format_exception(raised.value))
    assert 'violates unique constraint "keys_key"' in text
    assert key not in text


async def test_an_append_and_a_read_under_a_deadline_cause_no_warning_of_the_server(
    store: EventStore, postgres: Postgres
) -> None:
    stream = uuid4()
    with deadline(5.0):
        await store.append(stream, 0, [event(stream, 1)], key="k")
        assert [found.version for found in await store.read(stream)] == [1]
    assert "WARNING" not in (postgres.folder / "log").read_text()


async def test_a_process_that_is_stopped_within_an_append_does_not_keep_the_lock(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    longest = event_recorder._LONGEST.replace("10s", "1s")
    async with under_test.database.pool.borrowed(autocommit=True) as stopped:
        pipeline = stopped.pipeline()
        await pipeline.__aenter__()
        for query in ("BEGIN", longest, "LOCK TABLE events IN EXCLUSIVE MODE"):
            await psycopg.AsyncCursor(stopped).execute(query.encode())
        held = "SELECT 1 FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation IS NOT NULL AND granted"
        await until(
            "it holds the lock", lambda: bool(under_test.vault.postgres.rows(held, dbname=under_test.database.name))
        )
        await until("it is gone", lambda: not under_test.vault.postgres.rows(held, dbname=under_test.database.name), 5)
        with pytest.raises((psycopg.OperationalError, psycopg.errors.TransactionTimeout)):
            await pipeline.__aexit__(None, None, None)
    await store.append(stream := uuid4(), 0, [event(stream, 1)], key="after")


async def test_the_store_works_after_a_restart_of_the_server(store: EventStore, postgres: Postgres) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)])
    postgres.stop()
    await asyncio.to_thread(postgres.start)
    await store.append(stream, 1, [event(stream, 2)])
    assert [e.version for e in await store.read(stream)] == [1, 2]


async def test_an_unavailable_server_is_reported_within_the_deadline_and_works_after_its_restart(
    store: EventStore, under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    stream = uuid4()
    postgres.stop(kill=True)
    for call in (lambda: store.read(stream), under_test.database.check):
        started_at = time.monotonic()
        with deadline(1.0), pytest.raises(RpcError) as raised:
            await call()
        assert raised.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - started_at < 4.0
    await asyncio.to_thread(postgres.start)
    restarted_at = time.monotonic()

    async def both_work() -> bool:
        try:
            await store.read(stream)
            await under_test.database.check()
        except RpcError:
            return False
        return True

    await until("store and pool work again", both_work)
    assert time.monotonic() - restarted_at < 5.0


async def test_a_subscription_continues_after_a_restart_of_the_server(
    store: EventStore, under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    stream, found = uuid4(), store.subscribe(0)
    following = asyncio.ensure_future(anext(found))
    await until("it listens", lambda: store.notifications.listening)
    postgres.stop()
    await asyncio.to_thread(postgres.start)
    await until("the database answers", lambda: _answers(under_test))
    await store.append(stream, 0, [event(stream, 1)])
    assert (await asyncio.wait_for(following, 10))[1].version == 1


async def _answers(under_test: DatabaseUnderTest) -> bool:
    try:
        await under_test.database.check()
    except RpcError:  # a failed attempt to connect counts for a moment
        return False
    return True


async def test_a_notification_wakes_a_subscription(store: EventStore) -> None:
    stream, found = uuid4(), store.subscribe(0)
    following = asyncio.ensure_future(anext(found))
    await until("it listens", lambda: store.notifications.listening)
    for _ in range(3):
        await asyncio.sleep(0)
    started_at = time.monotonic()
    await store.append(stream, 0, [event(stream, 1)])
    await following
    assert time.monotonic() - started_at < 0.9, "it polls only once a second"


async def test_credentials_are_replaced_under_load_and_no_request_fails(postgres: Postgres, schema: str) -> None:
    """Leases of 2 s that Vault does not renew: a new user each second while readers and writers work."""
    async with database_under_test(postgres, schema, seconds=2.0) as under_test:
        under_test.vault.renewable = False
        await create_tables(under_test)
        store = await EventStore.open(under_test.database, write_rows=insert_key)
        stop, done = asyncio.Event(), [0, 0]

        async def write() -> None:
            while not stop.is_set():
                stream = uuid4()
                await store.append(stream, 0, [event(stream, 1)])
                done[0] += 1

        async def read() -> None:
            while not stop.is_set():
                async with under_test.database.connection() as connection:
                    await connection.execute("SELECT count(*) FROM events")
                done[1] += 1

        async def follow() -> None:
            async for position, _ in store.subscribe(0):
                received.append(position)

        received: list[int] = []
        following = asyncio.create_task(follow())
        work = [asyncio.create_task(kind()) for kind in (write, write, read, read)]
        await until("five logins", lambda: len(under_test.vault.issued) >= 5, 20)
        stop.set()
        under_test.vault.renewable = True
        await asyncio.gather(*work)
        assert min(done) > 50
        await until("the subscriber has received all", lambda: len(received) == done[0])
        following.cancel()
        # A replacement in progress may still issue another login, so the newest one is looked up each time.
        await until(
            "only the newest login is connected",
            lambda: _users(postgres, schema) == {under_test.vault.issued[-1].username},
        )


def _users(postgres: Postgres, database: str) -> set[str]:
    rows = postgres.rows(f"SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = '{database}'")
    return {row[0] for row in rows}
