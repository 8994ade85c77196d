"""The breaker: what it rejects, what it counts, and how it closes again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pybreaker
import pytest

from chassis.calls.breaker import GAUGE, AsyncBreaker, BreakerOpen, _breakers
from chassis.calls.transport import OutOfTime
from chassis.errors import RpcError
from chassis.settings import Live

from .breakers import LIMITS, RULES, Clock, fail, fault, make_breaker, state_of, succeed


async def _business_error() -> str:
    raise RpcError(grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN")


async def _load_shed() -> str:
    raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")


async def test_an_open_breaker_rejects_at_once_and_returns_when_to_retry() -> None:
    breaker, clock = make_breaker()
    await fail(breaker, 3)
    clock.now += 2
    with pytest.raises(BreakerOpen) as rejection:
        await breaker.call(succeed)
    assert (state_of(breaker), rejection.value.retry_after) == ("open", 3.0)


async def test_a_success_resets_the_count_of_failures_in_a_row() -> None:
    breaker, _ = make_breaker()
    for _ in range(5):
        await fail(breaker, 2)
        await breaker.call(succeed)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("response", [_business_error, _load_shed])
async def test_business_errors_and_shed_load_do_not_open_it(response: Callable[[], Awaitable[str]]) -> None:
    breaker, _ = make_breaker()
    for _ in range(20):
        with pytest.raises(RpcError):
            await breaker.call(response)
    assert state_of(breaker) == "closed"


async def test_the_failure_that_opens_it_is_raised_unchanged() -> None:
    breaker, _ = make_breaker(failures_in_a_row=1)
    with pytest.raises(RpcError, match="connection lost"):
        await breaker.call(fault)
    assert state_of(breaker) == "open"


@pytest.mark.parametrize("probes", [1, 3])
async def test_ten_thousand_concurrent_callers_make_no_more_than_the_allowed_probes(probes: int) -> None:
    breaker, clock = make_breaker(half_open_max=probes)
    await fail(breaker, 3)
    clock.now += 6
    gate, running = asyncio.Event(), 0

    async def held() -> str:
        nonlocal running
        running += 1
        await gate.wait()
        return "ok"

    callers = [asyncio.create_task(breaker.call(held)) for _ in range(10_000)]
    await asyncio.wait(callers, timeout=0.5, return_when=asyncio.ALL_COMPLETED)
    assert (running, state_of(breaker)) == (probes, "half-open")
    gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results.count("ok") == probes
    assert sum(isinstance(result, BreakerOpen) for result in results) == 10_000 - probes
    assert state_of(breaker) == "closed"


async def test_pybreaker_alone_admits_every_caller_while_it_is_half_open() -> None:
    """Negative control: what an await within pybreaker's own `calling` admits in the same race."""
    plain = pybreaker.CircuitBreaker(fail_max=1)
    plain.half_open()
    gate, running = asyncio.Event(), 0

    async def caller() -> None:
        nonlocal running
        with plain.calling():
            running += 1
            await gate.wait()

    callers = [asyncio.create_task(caller()) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.wait(callers, timeout=0.5, return_when=asyncio.ALL_COMPLETED)
    assert running == 100
    gate.set()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_a_failed_probe_opens_it_for_another_full_time() -> None:
    breaker, clock = make_breaker()
    await fail(breaker, 3)
    clock.now += 6
    await fail(breaker, 1)
    clock.now += 4.9
    with pytest.raises(BreakerOpen):
        await breaker.call(succeed)
    clock.now += 0.2
    assert await breaker.call(succeed) == "ok"
    assert state_of(breaker) == "closed"


async def test_closing_takes_as_many_successes_as_probes_are_allowed() -> None:
    breaker, clock = make_breaker(half_open_max=2)
    await fail(breaker, 3)
    clock.now += 6
    await breaker.call(succeed)
    assert state_of(breaker) == "half-open"
    await breaker.call(succeed)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("lowered", [1, 2])
async def test_it_closes_if_the_number_of_successes_is_lowered_to_those_that_it_has(lowered: int) -> None:
    breaker, clock = make_breaker(half_open_max=3)
    await fail(breaker, 3)
    clock.now += 6
    await breaker.call(succeed)
    await breaker.call(succeed)
    breaker.circuit.success_threshold = lowered
    assert await breaker.call(succeed) == "ok"
    assert state_of(breaker) == "closed"


async def test_a_call_whose_caller_ran_out_of_time_is_not_counted() -> None:
    async def out_of_time() -> str:
        raise OutOfTime

    breaker, clock = make_breaker()
    await fail(breaker, 2)
    for _ in range(10):
        with pytest.raises(OutOfTime):
            await breaker.call(out_of_time)
    assert state_of(breaker) == "closed"
    await fail(breaker, 1)
    assert state_of(breaker) == "open"
    clock.now += 6
    with pytest.raises(OutOfTime):
        await breaker.call(out_of_time)
    assert await breaker.call(succeed) == "ok"


async def test_a_cancelled_call_is_not_counted() -> None:
    breaker, _ = make_breaker()
    await fail(breaker, 2)
    for _ in range(10):
        await _cancel(breaker)
    assert state_of(breaker) == "closed"
    await fail(breaker, 1)
    assert state_of(breaker) == "open", "a cancelled call must not reset the count either"


async def test_a_cancelled_probe_makes_room_for_the_next_probe() -> None:
    breaker, clock = make_breaker()
    await fail(breaker, 3)
    clock.now += 6
    await _cancel(breaker)
    assert state_of(breaker) == "half-open"
    assert await breaker.call(succeed) == "ok"
    assert state_of(breaker) == "closed"


async def test_a_late_failure_of_an_earlier_state_is_ignored() -> None:
    breaker, clock = make_breaker()
    gate = asyncio.Event()

    async def late_failure() -> str:
        await gate.wait()
        return await fault()

    late = [asyncio.create_task(breaker.call(late_failure)) for _ in range(50)]
    await asyncio.sleep(0)
    await fail(breaker, 3)
    clock.now += 6
    await breaker.call(succeed)
    gate.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert state_of(breaker) == "closed"


async def test_a_late_success_does_not_close_an_open_breaker() -> None:
    breaker, clock = make_breaker()
    gate = asyncio.Event()

    async def late_success() -> str:
        await gate.wait()
        return "ok"

    late = asyncio.create_task(breaker.call(late_success))
    await asyncio.sleep(0)
    await fail(breaker, 3)
    clock.now += 6
    probe = breaker.admit()
    gate.set()
    assert await late == "ok"
    assert state_of(breaker) == "half-open"
    breaker.record(probe, ConnectionError())
    assert state_of(breaker) == "open"


async def test_allow_probe_ends_the_wait_of_an_open_breaker() -> None:
    breaker, _ = make_breaker()
    await fail(breaker, 3)
    breaker.allow_probe()
    assert await breaker.call(succeed) == "ok"
    assert state_of(breaker) == "closed"


async def test_a_changed_reset_time_applies_to_an_open_breaker() -> None:
    settings, clock = Live(LIMITS), Clock()
    breaker = AsyncBreaker("user-service", settings, rules=RULES, clock=clock)
    await fail(breaker, 3)
    settings.replace(LIMITS.model_copy(update={"reset_seconds": 1.0}))
    clock.now += 1.1
    assert await breaker.call(succeed) == "ok"


async def test_a_failure_ratio_of_one_turns_it_off_and_closes_an_open_one() -> None:
    settings = Live(LIMITS)
    breaker = AsyncBreaker("user-service", settings, rules=RULES, clock=Clock())
    await fail(breaker, 3)
    assert state_of(breaker) == "open"
    settings.replace(LIMITS.model_copy(update={"failure_ratio": 1.0}))
    await fail(breaker, 2000)
    assert state_of(breaker) == "closed"


async def test_the_gauge_shows_the_state() -> None:
    breaker, _ = make_breaker("observed")
    await fail(breaker, 3)
    observations = _breakers.observations(lambda each: GAUGE[each.state])
    assert [each.value for each in observations if (each.attributes or {})["breaker.name"] == "observed"] == [2]


async def _cancel(breaker: AsyncBreaker) -> None:
    started = asyncio.Event()

    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(breaker.call(endless))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
