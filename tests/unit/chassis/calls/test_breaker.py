"""The breaker: refusals first, then what it counts, then how it heals."""

from __future__ import annotations

import asyncio

import grpc
import pybreaker
import pytest

from chassis.calls.breaker import GAUGE, AsyncBreaker, BreakerOpen, _observations
from chassis.errors import RpcError

from .breakers import Limits, a_breaker, broken, fail, state_of


async def _ok() -> str:
    return "ok"


async def _refused() -> str:
    raise RpcError(grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN")


async def _shedding() -> str:
    raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")


async def test_an_open_breaker_refuses_at_once_and_says_when_to_come_back() -> None:
    breaker, clock = a_breaker()
    await fail(breaker, 3)
    clock.now += 2
    with pytest.raises(BreakerOpen) as refusal:
        await breaker.call(_ok)
    assert (state_of(breaker), refusal.value.retry_after) == ("open", 3.0)


async def test_failures_must_come_in_a_row() -> None:
    breaker, _ = a_breaker()
    for _ in range(5):
        await fail(breaker, 2)
        await breaker.call(_ok)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("answer", [_refused, _shedding])
async def test_a_callee_that_says_no_is_alive(answer) -> None:  # type: ignore[no-untyped-def]
    breaker, _ = a_breaker()
    for _ in range(20):
        with pytest.raises(RpcError):
            await breaker.call(answer)
    assert state_of(breaker) == "closed"


async def test_it_raises_the_failure_itself_when_it_trips() -> None:
    breaker, _ = a_breaker(Limits(failures_in_a_row=1))
    with pytest.raises(RpcError, match="nobody there"):
        await breaker.call(broken)
    assert state_of(breaker) == "open"


@pytest.mark.parametrize("probes", [1, 3])
async def test_ten_thousand_callers_at_once_make_no_more_than_the_allowed_probes(probes: int) -> None:
    breaker, clock = a_breaker(Limits(half_open_max=probes))
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


async def test_pybreaker_alone_lets_everybody_through_while_it_is_half_open() -> None:
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
    breaker, clock = a_breaker()
    await fail(breaker, 3)
    clock.now += 6
    await fail(breaker, 1)
    clock.now += 4.9
    with pytest.raises(BreakerOpen):
        await breaker.call(_ok)
    clock.now += 0.2
    assert await breaker.call(_ok) == "ok"
    assert state_of(breaker) == "closed"


async def test_closing_takes_as_many_successes_as_probes_are_allowed() -> None:
    breaker, clock = a_breaker(Limits(half_open_max=2))
    await fail(breaker, 3)
    clock.now += 6
    await breaker.call(_ok)
    assert state_of(breaker) == "half-open"
    await breaker.call(_ok)
    assert state_of(breaker) == "closed"


async def test_a_cancelled_call_counts_for_nothing() -> None:
    breaker, _ = a_breaker()
    await fail(breaker, 2)
    for _ in range(10):
        await _cancel(breaker)
    assert state_of(breaker) == "closed"
    await fail(breaker, 1)
    assert state_of(breaker) == "open", "a cancelled call must not reset the count either"


async def test_a_cancelled_probe_gives_its_place_to_the_next() -> None:
    breaker, clock = a_breaker()
    await fail(breaker, 3)
    clock.now += 6
    await _cancel(breaker)
    assert state_of(breaker) == "half-open"
    assert await breaker.call(_ok) == "ok"
    assert state_of(breaker) == "closed"


async def test_a_late_result_of_an_earlier_state_is_ignored() -> None:
    breaker, clock = a_breaker()
    gate = asyncio.Event()

    async def late_failure() -> str:
        await gate.wait()
        return await broken()

    stragglers = [asyncio.create_task(breaker.call(late_failure)) for _ in range(50)]
    await asyncio.sleep(0)
    await fail(breaker, 3)
    clock.now += 6
    await breaker.call(_ok)
    gate.set()
    await asyncio.gather(*stragglers, return_exceptions=True)
    assert state_of(breaker) == "closed"


async def test_a_late_success_does_not_close_an_open_breaker() -> None:
    breaker, clock = a_breaker()
    gate = asyncio.Event()

    async def late_success() -> str:
        await gate.wait()
        return "ok"

    straggler = asyncio.create_task(breaker.call(late_success))
    await asyncio.sleep(0)
    await fail(breaker, 3)
    clock.now += 6
    probe = breaker.admit()
    gate.set()
    assert await straggler == "ok"
    assert state_of(breaker) == "half-open"
    breaker.settle(probe, failed=True)
    assert state_of(breaker) == "open"


async def test_news_of_the_callee_allows_a_probe_at_once() -> None:
    breaker, _ = a_breaker()
    await fail(breaker, 3)
    breaker.probe_soon()
    assert await breaker.call(_ok) == "ok"
    assert state_of(breaker) == "closed"


async def test_its_limits_are_live() -> None:
    limits = Limits(failures_in_a_row=100)
    breaker, clock = a_breaker(limits)
    await fail(breaker, 3)
    assert state_of(breaker) == "closed"
    limits.failures_in_a_row = 4
    await fail(breaker, 1)
    assert state_of(breaker) == "open"
    limits.reset_seconds = 1.0
    clock.now += 1.1
    assert await breaker.call(_ok) == "ok"


async def test_its_state_is_a_gauge() -> None:
    breaker, _ = a_breaker()
    breaker.name = "seen"
    await fail(breaker, 3)
    seen = [o.value for o in _observations(None) if (o.attributes or {})["breaker.name"] == "seen"]  # type: ignore[arg-type]
    assert seen == [GAUGE["open"]]


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
