"""Breakers for tests: with a clock that the test sets, and limits that it chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chassis.calls.breaker import AsyncBreaker, BreakerRules
from chassis.errors import RpcError, unavailable
from chassis.settings import Live

from ...backends import SETTINGS

# Three failures in a row open it; the ratios do not apply unless a test lowers `minimum_calls`.
RULES = BreakerRules(
    window_seconds=10.0, minimum_calls=1000, slow_share=0.5, slow_ratio=0.8, failures_in_a_row=3, half_open_max=1
)
OPEN_FOR = 5.0
LIMITS = SETTINGS.model_copy(update={"deadline_seconds": 2.0, "failure_ratio": 0.5, "reset_seconds": OPEN_FOR})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_of(breaker: AsyncBreaker) -> str:
    return breaker.state


async def succeed() -> str:
    return "ok"


async def fault() -> str:
    raise unavailable("UNAVAILABLE", "connection lost", 1.0)


def make_breaker(name: str = "user-service", *, hooks: Any = None, **rules: Any) -> tuple[AsyncBreaker, Clock]:
    """Returns a closed breaker and its clock; `hooks` are further parameters of the breaker."""
    clock = Clock()
    return AsyncBreaker(name, Live(LIMITS), rules=replace(RULES, **rules), clock=clock, **(hooks or {})), clock


async def fail(breaker: AsyncBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(RpcError):
            await breaker.call(fault)
