"""Appends that arrive while another one is in progress share a transaction; each has its own result all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import grpc
import pytest
from behaviour.event_log import event
from support.postgres.database_under_test import DatabaseUnderTest
from support.waiting import until

from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.events.port import AlreadyRecorded, VersionConflict
from chassis.postgres.event_store import EventStore

from .test_event_store import create_tables, insert_key
from .test_event_store_failures import lose_results


@pytest.fixture
async def store(under_test: DatabaseUnderTest) -> EventStore:
    await create_tables(under_test)
    return await EventStore.open(under_test.database, write_rows=insert_key)


def waiting(under_test: DatabaseUnderTest) -> int:
    return len(under_test.vault.postgres.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))


def transactions(under_test: DatabaseUnderTest) -> list[int]:
    """The number of events of each transaction, in the order of their positions."""
    name = under_test.database.name
    counted = f"SELECT count(*) FROM {name}.events GROUP BY xmin ORDER BY min(notification_id)"
    return [int(count) for (count,) in under_test.vault.postgres.rows(counted, dbname=name)]


@asynccontextmanager
async def held(store: EventStore, under_test: DatabaseUnderTest) -> AsyncIterator[asyncio.Task[None]]:
    """Holds the lock of the table within the block; one append, which is yielded, waits for it by itself."""
    async with under_test.database.connection() as connection:
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        first = append(store, uuid4())
        await until("the first one waits", lambda: waiting(under_test) == 1)
        yield first


def append(store: EventStore, stream: UUID, key: str | None = None, versions: int = 1) -> asyncio.Task[None]:
    events = [event(stream, version) for version in range(1, versions + 1)]
    return asyncio.create_task(store.append(stream, 0, events, key=key or stream.hex))


async def test_appends_that_arrive_while_one_is_in_progress_share_a_transaction(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    streams = [uuid4() for _ in range(18)]
    async with held(store, under_test) as first:
        others = [append(store, stream, versions=2) for stream in streams]
        await until("they wait", lambda: waiting(under_test) == 2)
    await asyncio.gather(first, *others)
    assert transactions(under_test) == [1, 32, 4]
    positions = await store.since(0)
    assert [recorded.stream for _, recorded in positions[1:]] == [stream for stream in streams for _ in range(2)]
    for stream in streams:
        assert [found.version for found in await store.read(stream)] == [1, 2]


async def test_an_append_with_no_other_in_progress_is_a_transaction_of_its_own(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    for _ in range(3):
        await append(store, uuid4())
    assert transactions(under_test) == [1, 1, 1]


async def test_appends_that_fail_in_a_shared_transaction_fail_alone(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    taken, twice = uuid4(), uuid4()
    await append(store, taken, "taken")
    async with held(store, under_test) as first:
        good = [append(store, uuid4()) for _ in range(3)]
        conflict, repeated = append(store, taken), append(store, uuid4(), "taken")
        same = [append(store, twice, key) for key in ("one", "other")]
        await until("they wait", lambda: waiting(under_test) == 2)
    await asyncio.gather(first, *good)
    for task, error in ((conflict, VersionConflict), (repeated, AlreadyRecorded)):
        with pytest.raises(error):
            await task
    outcomes = await asyncio.gather(*same, return_exceptions=True)
    assert sorted(type(outcome) for outcome in outcomes if outcome) == [VersionConflict]
    assert len(await store.since(0)) == 6


async def test_a_shared_transaction_whose_result_was_lost_happens_once(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    streams = [uuid4() for _ in range(5)]
    async with held(store, under_test) as first:
        lose_results(store, 1)
        others = [append(store, stream) for stream in streams]
        await until("they wait", lambda: waiting(under_test) == 2)
    await asyncio.gather(first, *others)
    assert transactions(under_test) == [1, 5]


async def test_a_caller_that_gives_up_leaves_the_shared_transaction_to_the_others(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    async with held(store, under_test) as first:
        others = [append(store, uuid4()) for _ in range(3)]
        with deadline(0.3):
            late = append(store, uuid4())
        await until("they wait", lambda: waiting(under_test) == 2)
        others[0].cancel()
        with pytest.raises(RpcError) as raised:
            await late
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert waiting(under_test) == 2
    await asyncio.gather(first, *others[1:])


async def test_a_shared_transaction_that_nobody_waits_for_any_more_is_cancelled_in_postgres(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    async with held(store, under_test) as first:
        others = [append(store, uuid4()) for _ in range(3)]
        await until("they wait", lambda: waiting(under_test) == 2)
        for other in others:
            other.cancel()
        await until("only the first one waits", lambda: waiting(under_test) == 1, 1)
    await first
    assert transactions(under_test) == [1]
    await append(store, uuid4())


async def test_one_conflict_among_sixteen_leaves_the_others_in_few_transactions(
    store: EventStore, under_test: DatabaseUnderTest
) -> None:
    await append(store, uuid4(), "taken")
    async with held(store, under_test) as first:
        others = [append(store, uuid4(), "taken" if number == 5 else None) for number in range(16)]
        await until("they wait", lambda: waiting(under_test) == 2)
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome] == [AlreadyRecorded]
    assert sorted(transactions(under_test)) == [1, 1, 1, 2, 4, 8]


async def test_a_defect_in_one_append_fails_that_one_alone(store: EventStore, under_test: DatabaseUnderTest) -> None:
    async with held(store, under_test) as first:
        good, broken = [append(store, uuid4()) for _ in range(3)], append(store, uuid4(), "\ud800")
        await until("they wait", lambda: waiting(under_test) == 2)
    await asyncio.gather(first, *good)
    with pytest.raises(UnicodeEncodeError):
        await broken
