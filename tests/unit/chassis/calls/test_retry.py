"""Retries on the wire: when there is none, push-back, and the budget; each with the defence switched off beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any

import grpc
import pytest

from chassis.calls.retry import RETRY_RULES, AttemptTimer, Retries, RetryBudget
from chassis.errors import RpcError, unavailable
from chassis.settings import Live

from ..backends import Backends, error_of, settings
from ..echo_service import echo, never
from .simulated_calls import READ

NO_OTHER_DEFENCE = {"ejection_seconds": 0.0, "failure_ratio": 1.0}


@pytest.fixture
def backends(backends: Backends) -> Backends:
    backends.change(attempts=3, **NO_OTHER_DEFENCE)
    return backends


def attempts_at(backends: Backends) -> int:
    return sum(len(server.seen) for server in backends.servers)


def failing(pushback: str | None) -> Any:
    """Returns the behaviour of an instance that breaks off each call, with this push-back."""

    async def fail(_text: str, context: Any) -> str:
        if pushback is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return ""

    return fail


async def test_an_idempotent_call_is_attempted_three_times_at_most(backends: Backends) -> None:
    await backends.start(failing(None), failing(None))
    assert (await error_of(backends.stub.read("x"))).code is grpc.StatusCode.UNAVAILABLE
    assert attempts_at(backends) == 3


@pytest.mark.parametrize("pushback", ["-1", "never"])
async def test_a_call_is_not_retried_if_the_server_forbids_it(backends: Backends, pushback: str) -> None:
    await backends.start(failing(pushback), failing(pushback))
    assert (await error_of(backends.stub.read("x"))).code is grpc.StatusCode.UNAVAILABLE
    assert attempts_at(backends) == 1


async def test_a_retry_waits_for_the_push_back_of_the_server(backends: Backends) -> None:
    await backends.start(failing("150"), failing("150"))
    began = time.monotonic()
    await error_of(backends.stub.read("x"))
    assert (attempts_at(backends), time.monotonic() - began > 0.3) == (3, True)


async def test_a_call_fails_at_once_if_its_retry_would_come_after_the_deadline(backends: Backends) -> None:
    await backends.start(failing("60000"))
    began = time.monotonic()
    await error_of(backends.stub.read("x"))
    assert (attempts_at(backends), time.monotonic() - began < 1.5) == (1, True)


@pytest.mark.parametrize(("ratio", "most"), [(0.1, 223), (2.0, 600)])
async def test_the_budget_keeps_retries_at_a_tenth_of_the_calls(backends: Backends, ratio: float, most: int) -> None:
    """The second case is the control: with a budget for two retries per call, every call is attempted three times."""
    backends.change(attempts=3, retry_budget_ratio=ratio, **NO_OTHER_DEFENCE)
    backends.target.budget = RetryBudget(backends.settings, size=2)
    await backends.start(failing(None), failing(None))
    for _ in range(200):
        await error_of(backends.stub.read("x"))
    assert (attempts_at(backends) <= most, attempts_at(backends) >= min(most, 210)) == (True, True)
    assert (attempts_at(backends) == 600) == (ratio == 2.0)
    assert backends.target.budget.withdrawn == attempts_at(backends) - 200


async def test_a_changed_setting_applies_to_the_next_call(backends: Backends) -> None:
    await backends.start(failing(None), failing(None))
    await error_of(backends.stub.read("x"))
    backends.change(attempts=1)
    await error_of(backends.stub.read("y"))
    assert attempts_at(backends) == 4


@pytest.mark.parametrize("attempt_seconds", [0.2, 5.0])
async def test_an_attempt_that_hangs_leaves_time_for_another_instance(
    backends: Backends, attempt_seconds: float
) -> None:
    """The second case is the control: without an attempt timeout, the deadline passes."""
    backends.change(attempt_seconds=attempt_seconds, ejection_seconds=0.0)
    await backends.start(never, echo)
    results = await asyncio.gather(*(backends.stub.read("x") for _ in range(10)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, RpcError)]
    assert bool(failed) == (attempt_seconds > 2)


async def slow(text: str, _context: Any) -> str:
    await asyncio.sleep(0.4)
    return text


@pytest.mark.parametrize("size", [1, 100])
async def test_calls_that_are_slow_at_every_instance_are_not_cut_off(backends: Backends, size: int) -> None:
    """With any budget: an attempt ends early only for a better one, and not if all instances are as slow."""
    backends.change(attempt_seconds=0.2, attempts=3, ejection_seconds=0.0)
    backends.target.budget = RetryBudget(backends.settings, size)
    await backends.start(slow, slow)
    for _ in range(3):
        responses = await asyncio.gather(*(backends.stub.read("x") for _ in range(10)))
        assert len(responses) == 10
    assert attempts_at(backends) <= 30 + 2 * size
    assert backends.target.breaker.state == "closed"


def test_a_budget_holds_no_more_tokens_than_its_size_and_calls_refill_it() -> None:
    budget = RetryBudget(Live(settings(retry_budget_ratio=0.1)), size=2)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    for _ in range(100):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    assert (budget.withdrawn, budget.denied) == (5, 3)


class Pending:
    """A call that ends when `response` is set, or when it is cancelled."""

    def __init__(self) -> None:
        self.response: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, str]:
        return self.response.__await__()

    def done(self) -> bool:
        return self.response.done()

    def cancel(self) -> None:
        if not self.response.done():
            self.response.set_exception(unavailable("UNAVAILABLE", "cancelled", 1.0))


def retries(tokens: int) -> Retries:
    budget = RetryBudget(Live(settings()), size=tokens)
    return Retries(settings(), budget, READ, RETRY_RULES)


async def test_each_attempt_is_cancelled_after_its_own_time() -> None:
    timer, call = AttemptTimer(), Pending()
    longest = asyncio.create_task(timer.response(call, retries(1), 60.0))
    await asyncio.sleep(0)
    began = time.monotonic()
    for seconds in (0.2, 0.1):
        error = await error_of(timer.response(Pending(), retries(1), seconds))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began >= 0.29
    call.response.set_result("in time")
    assert await longest == "in time"


async def test_an_attempt_is_not_cancelled_while_there_is_no_retry_token() -> None:
    call = Pending()
    attempt = asyncio.create_task(AttemptTimer().response(call, retries(0), 0.02))
    await asyncio.sleep(0.1)
    call.response.set_result("late")
    assert await attempt == "late"


async def test_attempts_that_end_in_time_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timer, timers = asyncio.get_running_loop(), AttemptTimer(), []
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda *given, **more: timers.append(given) or call_later(*given, **more))
    for number in range(100):
        call = Pending()
        call.response.set_result(str(number))
        assert await timer.response(call, retries(1), 5.0) == str(number)
    assert len(timers) == 1


async def test_a_failure_of_an_attempt_in_time_is_not_a_timeout() -> None:
    call = Pending()
    call.response.set_exception(unavailable("UNAVAILABLE", "connection lost", 1.0))
    assert (await error_of(AttemptTimer().response(call, retries(1), 5.0))).code is grpc.StatusCode.UNAVAILABLE


async def test_an_answer_that_arrives_together_with_the_end_of_its_time_counts() -> None:
    call, used = Pending(), retries(1)
    attempt = asyncio.create_task(AttemptTimer().response(call, used, 0.02))
    await asyncio.sleep(0)
    call.response.get_loop().call_later(0.02, time.sleep, 0.02)  # the loop is late, so both are due at once
    call.response.get_loop().call_later(0.001, time.sleep, 0.03)
    call.response.get_loop().call_later(0.002, call.response.set_exception, RpcError(grpc.StatusCode.NOT_FOUND, "X"))
    assert (await error_of(attempt)).code is grpc.StatusCode.NOT_FOUND
    assert not used.token_taken
