"""Measures the cost of the breaker per call on a closed circuit, beside plain pybreaker: the best of many rounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pybreaker

from chassis.calls.breaker import AsyncBreaker
from chassis.calls.client_settings import ClientSettings
from chassis.settings import Live

CALLS, ROUNDS = 10_000, 20
SETTINGS = ClientSettings(
    deadline_seconds=3.0, calls_at_once=100, failure_ratio=0.5, reset_seconds=3.0, attempts=3, attempt_seconds=1.0,
    retry_budget_ratio=0.1, ejection_seconds=1.0,
)  # fmt: skip


async def work() -> None:
    """The guarded call."""


def plain_work() -> None:
    """The guarded call for pybreaker alone, which cannot guard a coroutine."""


async def ours() -> float:
    breaker = AsyncBreaker("bench", Live(SETTINGS))
    return await _seconds(lambda: breaker.call(work)) - await _seconds(work)


def plain() -> float:
    breaker = pybreaker.CircuitBreaker()
    return _seconds_sync(lambda: breaker.call(plain_work)) - _seconds_sync(plain_work)


async def _seconds(call: Callable[[], Awaitable[None]]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            await call()
        best = min(best, time.perf_counter() - began)
    return best / CALLS


def _seconds_sync(call: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - began)
    return best / CALLS


def main() -> None:
    here, there = asyncio.run(ours()) * 1e6, plain() * 1e6
    print(f"overhead of a call on a closed circuit, best of {ROUNDS} rounds of {CALLS} calls")
    print(f"  chassis.calls.breaker  {here:5.2f} µs  (goal: 3 µs)")
    print(f"  pybreaker alone  {there:5.2f} µs  ({here / there:.2f} times of it)")


if __name__ == "__main__":
    main()
