"""A breaker with a clock in the test's hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from chassis.calls.breaker import AsyncBreaker, BreakerSettings
from chassis.errors import RpcError, unavailable


@dataclass
class Limits:
    """Three failures in a row open it; the ratios are far away unless a test brings them near."""

    window_seconds: float = 10.0
    minimum_calls: int = 1000
    failure_ratio: float = 0.5
    slow_seconds: float = 1.0
    slow_ratio: float = 0.8
    failures_in_a_row: int = 3
    reset_seconds: float = 5.0
    half_open_max: int = 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_of(breaker: AsyncBreaker) -> str:
    return breaker.state


async def broken() -> str:
    raise unavailable("UNAVAILABLE", "nobody there", 1.0)


def a_breaker(limits: Limits | None = None) -> tuple[AsyncBreaker, Clock]:
    clock, known = Clock(), limits or Limits()
    return AsyncBreaker("user-service", lambda: cast(BreakerSettings, known), clock=clock), clock


async def fail(breaker: AsyncBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(RpcError):
            await breaker.call(broken)
