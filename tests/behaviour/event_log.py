"""Behaviour of every EventLog, run on the memory store and on Postgres.

The `store` fixture writes `key` as a row in the transaction of the events, under the unique constraint `keys_key`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from chassis.events.port import AlreadyRecorded, EventLog, VersionConflict
from chassis.events.record import RecordedEvent


def event(stream: UUID, version: int, kind: str = "OrderPlaced", **data: Any) -> RecordedEvent:
    meta = {"occurred_at": "2026-01-01T00:00:00Z", "command_id": str(uuid4()), "traceparent": ""}
    return RecordedEvent(stream, version, kind, data, meta)


async def test_an_append_on_an_old_version_is_a_conflict(store: EventLog) -> None:
    stream = uuid4()
    first = event(stream, 1)
    await store.append(stream, 0, [first])
    with pytest.raises(VersionConflict):
        await store.append(stream, 0, [event(stream, 1, "OrderCancelled")])
    assert await store.read(stream) == [first]


async def test_a_conflicting_append_writes_nothing(store: EventLog) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1), event(stream, 2)])
    with pytest.raises(VersionConflict):
        await store.append(stream, 1, [event(stream, 2, "OrderRejected"), event(stream, 3, "OrderRejected")], key="k")
    assert [e.version for e in await store.read(stream)] == [1, 2]
    other = uuid4()
    await store.append(other, 0, [event(other, 1)], key="k")


async def test_events_with_wrong_versions_are_a_programming_error(store: EventLog) -> None:
    stream = uuid4()
    with pytest.raises(ValueError, match="expected version 1"):
        await store.append(stream, 0, [event(stream, 2)])
    with pytest.raises(ValueError, match="expected version 1"):
        await store.append(stream, 0, [event(uuid4(), 1)])


async def test_events_appended_with_a_used_key_are_not_recorded(store: EventLog) -> None:
    first, second = uuid4(), uuid4()
    await store.append(first, 0, [event(first, 1)], key="once")
    with pytest.raises(AlreadyRecorded) as error:
        await store.append(second, 0, [event(second, 1)], key="once")
    assert error.value.constraint == "keys_key"
    assert await store.read(second) == []


async def test_a_key_can_be_written_without_events(store: EventLog) -> None:
    await store.append(uuid4(), 0, [], key="alone")
    with pytest.raises(AlreadyRecorded):
        await store.append(uuid4(), 0, [], key="alone")


async def test_an_unknown_stream_is_empty(store: EventLog) -> None:
    assert await store.read(uuid4()) == []
    assert await store.since(0) == []
    assert await store.head() == 0


async def test_events_are_read_as_they_were_written(store: EventLog) -> None:
    stream = uuid4()
    events = [event(stream, 1, lines=[{"sku": "ä", "quantity": 2}], total=10**15), event(stream, 2, "OrderConfirmed")]
    await store.append(stream, 0, events)
    assert await store.read(stream) == events
    assert await store.read(stream, after=1) == events[1:]


async def test_positions_increase_over_all_streams(store: EventLog) -> None:
    one, two = uuid4(), uuid4()
    await store.append(one, 0, [event(one, 1)])
    await store.append(two, 0, [event(two, 1), event(two, 2)])
    await store.append(one, 1, [event(one, 2)])
    found = await store.since(0)
    assert [(e.stream, e.version) for _, e in found] == [(one, 1), (two, 1), (two, 2), (one, 2)]
    positions = [position for position, _ in found]
    assert positions == sorted(set(positions))
    assert [e.version for _, e in await store.since(positions[1], limit=1)] == [2]
    assert await store.head() == positions[-1]


async def test_one_of_many_writers_at_the_same_version_succeeds(store: EventLog) -> None:
    stream = uuid4()
    attempts = [store.append(stream, 0, [event(stream, 1, f"Try{number}")]) for number in range(20)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, VersionConflict) for result in results) == 19
    assert len(await store.read(stream)) == 1


async def test_a_subscription_yields_past_and_later_events(store: EventLog) -> None:
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1)])
    found = store.subscribe(0)
    assert (await asyncio.wait_for(anext(found), 5))[1].version == 1
    following = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0)
    await store.append(stream, 1, [event(stream, 2)])
    position, second = await asyncio.wait_for(following, 5)
    assert second.version == 2
    again = store.subscribe(position)
    await store.append(stream, 2, [event(stream, 3)])
    assert (await asyncio.wait_for(anext(again), 5))[1].version == 3


async def test_a_subscription_skips_no_event_of_concurrent_writers(store: EventLog) -> None:
    async def write(count: int) -> None:
        stream = uuid4()
        for version in range(1, count + 1):
            await store.append(stream, version - 1, [event(stream, version)])

    writers = asyncio.gather(*(write(20) for _ in range(10)))
    seen: list[tuple[UUID, int]] = []
    async with asyncio.timeout(30):
        async for _, found in store.subscribe(0):
            seen.append((found.stream, found.version))
            if len(seen) == 200:
                break
    await writers
    assert len(set(seen)) == 200
