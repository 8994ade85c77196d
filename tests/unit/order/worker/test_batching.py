"""Concurrent calls share a batch; each gets its own result or error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.waiting import until

from chassis.batching import Batcher
from chassis.deadline import deadline, remaining
from chassis.errors import RpcError


class Work:
    """Doubles each item. Waits at a gate; an item below 0 fails."""

    def __init__(self, most: int = 100) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.remaining: list[float | None] = []
        self.batcher: Batcher[int, int] = Batcher(self.run, most, 5.0)

    async def run(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.remaining.append(remaining())
        await self.gate.wait()
        if 99 in items:
            raise LookupError("the batch fails")
        return [ValueError(item) if item < 0 else 2 * item for item in items]

    def submit(self, *items: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.batcher.submit(item)) for item in items]


async def test_a_single_call_is_a_batch_of_its_own_and_waits_for_no_other() -> None:
    work = Work()
    work.gate.set()
    assert await work.batcher.submit(1) == 2
    assert await work.batcher.submit(2) == 4
    assert work.batches == [[1], [2]]


async def test_calls_that_arrive_during_a_batch_form_the_next_one() -> None:
    work = Work()
    first = work.submit(1)
    await until("the first batch runs", lambda: work.batches == [[1]])
    others = work.submit(2, 3, 4)
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*first, *others) == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


async def test_a_batch_has_at_most_so_many_items() -> None:
    work = Work(most=2)
    calls = work.submit(1, 2, 3, 4, 5)
    work.gate.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10]
    assert work.batches == [[1, 2], [3, 4], [5]]


async def test_an_item_that_fails_fails_alone() -> None:
    work = Work()
    work.gate.set()
    outcomes = await asyncio.gather(*work.submit(1, -2, 3), return_exceptions=True)
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [2, ValueError, 6]


async def test_a_batch_that_fails_fails_for_each_of_its_calls_and_for_no_other() -> None:
    work = Work(most=2)
    work.gate.set()
    outcomes = await asyncio.gather(*work.submit(1, 99, 3), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError, LookupError, int]


async def test_a_caller_that_is_cancelled_does_not_disturb_the_others() -> None:
    work = Work()
    cancelled, other = work.submit(1, 2)
    await until("the batch runs", lambda: work.batches == [[1, 2]])
    cancelled.cancel()
    work.gate.set()
    assert await other == 4
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_a_batch_has_a_time_of_its_own_whatever_its_calls_have_left() -> None:
    work = Work()
    work.gate.set()
    for seconds in (0.01, 3600.0):
        with deadline(seconds):
            await work.batcher.submit(1)
    await work.batcher.submit(2)
    assert work.remaining == [pytest.approx(5.0, abs=1)] * 3


async def test_a_batch_whose_work_is_ended_from_within_fails_for_each_of_its_calls_and_for_no_other() -> None:
    async def ended(items: Sequence[int]) -> list[int | Exception]:
        if 1 in items:
            raise asyncio.CancelledError
        return list(items)

    batcher = Batcher(ended, 100, 5.0)
    with pytest.raises(RpcError, match="ended from within"):
        await asyncio.wait_for(batcher.submit(1), 5)
    assert await asyncio.wait_for(batcher.submit(2), 5) == 2


async def test_an_item_whose_caller_gave_up_before_its_batch_began_is_not_in_it() -> None:
    work = Work()
    first = work.submit(1)
    await until("the first batch runs", lambda: work.batches == [[1]])
    cancelled, other = work.submit(2, 3)
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    work.gate.set()
    assert await asyncio.gather(*first, other) == [2, 6]
    assert work.batches == [[1], [3]]


async def test_a_batch_is_cancelled_when_all_of_its_callers_have_given_up() -> None:
    work = Work()
    calls = work.submit(1, 2)
    await until("the batch runs", lambda: work.batches == [[1, 2]])
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    # The gate is closed: another batch can begin only because the first one has ended.
    following = work.submit(3)
    await until("the next batch runs", lambda: work.batches == [[1, 2], [3]])
    work.gate.set()
    assert await asyncio.gather(*following) == [6]


async def test_a_batch_that_does_not_end_in_time_does_not_keep_the_next_one_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chassis.batching._GRACE_SECONDS", 0.1)
    never = asyncio.Event()

    async def hanging(items: Sequence[int]) -> list[int | Exception]:
        while 1 in items and not never.is_set():  # as a database that does not answer a cancellation
            try:
                await never.wait()
            except asyncio.CancelledError:
                continue
        return list(items)

    batcher = Batcher(hanging, 100, 0.1)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    second = asyncio.create_task(batcher.submit(2))
    assert await asyncio.wait_for(second, 5) == 2
    with pytest.raises(RpcError, match="did not end in time"):
        await first
    never.set()


async def test_when_the_process_stops_nobody_waits_for_a_batch_any_more() -> None:
    work = Work()
    first = work.submit(1)
    await until("the batch runs", lambda: work.batches == [[1]])
    second = work.submit(2)
    await asyncio.sleep(0)
    assert work.batcher._running is not None
    work.batcher._running.cancel()
    for call in (*first, *second):
        with pytest.raises(RpcError, match="stopping"):
            await asyncio.wait_for(call, 5)
