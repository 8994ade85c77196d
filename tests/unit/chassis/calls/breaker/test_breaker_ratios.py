"""The breaker's ratios of failed and of slow calls within its window."""

from __future__ import annotations

from chassis.calls.breaker import AsyncBreaker

from .breakers import Clock, fail, make_breaker, state_of


def breaker_with_ratios() -> tuple[AsyncBreaker, Clock]:
    return make_breaker(minimum_calls=10, failures_in_a_row=1000)


def record(breaker: AsyncBreaker, clock: Clock, results: str, seconds: float = 0.0) -> None:
    """Records one call per letter, F for a failed one, 0.1 s apart; each took `seconds`."""
    for result in results:
        clock.now += 0.1
        breaker.record(breaker.admit(), ConnectionError() if result == "F" else None, seconds)


async def test_it_opens_when_half_of_the_calls_fail_once_there_are_enough() -> None:
    breaker, clock = breaker_with_ratios()
    record(breaker, clock, ".F.F.F.F")
    assert state_of(breaker) == "closed", "too few calls for a ratio"
    record(breaker, clock, ".F")
    assert state_of(breaker) == "open"


async def test_it_stays_closed_when_fewer_than_half_of_many_calls_fail() -> None:
    breaker, clock = breaker_with_ratios()
    record(breaker, clock, "..F" * 200)
    assert state_of(breaker) == "closed"


async def test_failures_older_than_the_window_are_not_counted() -> None:
    breaker, clock = breaker_with_ratios()
    record(breaker, clock, "F" * 9)
    clock.now += 12
    record(breaker, clock, "F" * 9)
    assert state_of(breaker) == "closed"
    record(breaker, clock, "F")
    assert state_of(breaker) == "open"


async def test_slow_calls_open_it_although_they_succeed() -> None:
    breaker, clock = breaker_with_ratios()
    record(breaker, clock, "." * 20, seconds=0.9)
    assert state_of(breaker) == "closed"
    clock.now += 20
    record(breaker, clock, "." * 10, seconds=1.1)
    assert state_of(breaker) == "open"


async def test_a_slow_probe_opens_it_again() -> None:
    breaker, clock = make_breaker()
    await fail(breaker, 3)
    clock.now += 6
    record(breaker, clock, ".", seconds=2.0)
    assert state_of(breaker) == "open"
