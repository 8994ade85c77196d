"""What the breaker makes of how many calls fail or are slow within its window."""

from __future__ import annotations

from chassis.calls.breaker import AsyncBreaker

from .breakers import Clock, Limits, a_breaker, fail, state_of

RATIOS = {"minimum_calls": 10, "failures_in_a_row": 1000}


async def calls(breaker: AsyncBreaker, clock: Clock, outcomes: str, apart: float = 0.1, lasting: float = 0.0) -> None:
    """Make one call a letter, F for a failing one, `apart` seconds from each other."""
    for outcome in outcomes:
        clock.now += apart
        generation = breaker.admit()
        breaker.settle(generation, failed=outcome == "F", seconds=lasting)


async def test_half_of_the_calls_failing_open_it_once_there_are_enough() -> None:
    breaker, clock = a_breaker(Limits(**RATIOS))  # type: ignore[arg-type]
    await calls(breaker, clock, ".F.F.F.F")
    assert state_of(breaker) == "closed", "too few calls to judge by"
    await calls(breaker, clock, ".F")
    assert state_of(breaker) == "open"


async def test_less_than_half_failing_leave_it_closed_however_many_they_are() -> None:
    breaker, clock = a_breaker(Limits(**RATIOS))  # type: ignore[arg-type]
    await calls(breaker, clock, "..F" * 200)
    assert state_of(breaker) == "closed"


async def test_failures_older_than_the_window_are_forgotten() -> None:
    breaker, clock = a_breaker(Limits(**RATIOS))  # type: ignore[arg-type]
    await calls(breaker, clock, "F" * 9)
    clock.now += 12
    await calls(breaker, clock, "F" * 9)
    assert state_of(breaker) == "closed"
    await calls(breaker, clock, "F")
    assert state_of(breaker) == "open"


async def test_slow_calls_open_it_although_they_succeed() -> None:
    breaker, clock = a_breaker(Limits(**RATIOS))  # type: ignore[arg-type]
    await calls(breaker, clock, "." * 20, lasting=0.9)
    assert state_of(breaker) == "closed"
    clock.now += 20
    await calls(breaker, clock, "." * 10, lasting=1.1)
    assert state_of(breaker) == "open"


async def test_a_slow_probe_opens_it_again() -> None:
    breaker, clock = a_breaker()
    await fail(breaker, 3)
    clock.now += 6
    await calls(breaker, clock, ".", lasting=2.0)
    assert state_of(breaker) == "open"
