"""Concurrent callers share one run, and a failure counts until its backoff is over."""

from __future__ import annotations

import asyncio

import pytest
from support.waiting import until

from chassis.platform.single_flight import SingleFlight


class Work:
    """Counts its runs; each one waits until it may end."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        await self.may_end.wait()
        if self.fails:
            raise OSError(self.runs)
        return self.runs


async def test_concurrent_callers_share_a_run_and_the_next_caller_starts_another() -> None:
    work = Work()
    flight = SingleFlight(work, 60, 60)
    callers = [asyncio.ensure_future(flight()) for _ in range(5)]
    await until("it runs", lambda: work.runs == 1)
    work.may_end.set()
    assert await asyncio.gather(*callers) == [1] * 5
    assert await flight() == 2


async def test_a_run_outlasts_a_caller_that_is_cancelled() -> None:
    work = Work()
    flight = SingleFlight(work, 60, 60)
    first, second = asyncio.ensure_future(flight()), asyncio.ensure_future(flight())
    await until("it runs", lambda: work.runs == 1)
    first.cancel()
    await asyncio.sleep(0)
    work.may_end.set()
    assert await second == 1


async def test_a_failure_is_raised_without_another_run_until_its_backoff_is_over() -> None:
    work = Work()
    work.may_end.set()
    work.fails = True
    flight = SingleFlight(work, 0.2, 0.2)
    for _ in range(20):
        with pytest.raises(OSError, match="1"):
            await flight()
    assert work.runs == 1
    await asyncio.sleep(0.25)
    work.fails = False
    assert await flight() == 2


async def test_the_backoff_grows_with_each_failure_and_a_success_shortens_it() -> None:
    work = Work()
    work.may_end.set()
    flight = SingleFlight(work, 0.01, 60)

    async def runs_within_a_second() -> int:
        before, ends_at = work.runs, asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < ends_at:
            with pytest.raises(OSError):  # noqa: PT011
                await flight()
            await asyncio.sleep(0.001)
        return work.runs - before

    work.fails = True
    assert 3 <= await runs_within_a_second() <= 10
    work.fails = False
    flight._failed_until = 0
    await flight()
    work.fails = True
    assert await runs_within_a_second() >= 3
