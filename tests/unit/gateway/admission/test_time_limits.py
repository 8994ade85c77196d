"""Blocks that take too long are interrupted, all by one timer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gateway.admission.time_limits import TimeLimits


async def limited(limits: TimeLimits, seconds: float, work: float) -> float:
    """Works within a limit; returns the seconds until the end, which is a TimeoutError if the limit is shorter."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(None) as timeout:
            limits.start(timeout, seconds)
            try:
                await asyncio.sleep(work)
            finally:
                limits.stop(timeout)
    except TimeoutError:
        assert seconds < work
    else:
        assert work < seconds
    return time.monotonic() - began


async def test_each_block_ends_at_its_own_limit() -> None:
    limits = TimeLimits()
    work = [(0.3, 9), (0.1, 9), (0.2, 9), (9, 0.15), (0.2, 0.05), (9, 0)]
    took = await asyncio.gather(*(limited(limits, seconds, each) for seconds, each in work))
    for seconds, expected in zip(took, (min(pair) for pair in work), strict=True):
        assert expected - 0.01 <= seconds < expected + 0.1


async def test_a_limit_that_begins_after_the_last_one_has_ended_holds() -> None:
    limits = TimeLimits()
    for _ in range(3):
        assert await limited(limits, 0.05, 9) < 0.15
        await limited(limits, 9, 0)


async def test_one_timer_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, made, check_at = TimeLimits(), list[float](), TimeLimits._check_at

    def counted(*arguments: Any) -> None:
        made.append(arguments[-1])
        check_at(*arguments)

    monkeypatch.setattr(TimeLimits, "_check_at", counted)
    for _ in range(100):
        await limited(limits, 5, 0)
    assert len(made) == 1


async def test_a_block_that_is_cancelled_from_outside_is_no_timeout() -> None:
    limits = TimeLimits()
    task = asyncio.create_task(limited(limits, 5, 9))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
