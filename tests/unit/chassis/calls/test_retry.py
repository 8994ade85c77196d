"""Retries on the wire: refusals and push-back first, then the budget; each with the defence switched off beside it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from chassis.calls.retry import RetryBudget, RetrySettings
from chassis.errors import RpcError

from ..backends import World, refusal, settings
from ..echo_service import echo, never


@pytest.fixture
def world(world: World) -> World:
    world.settings = settings(retry__attempts=3, balancing__left_out_share=0.0, breaker__minimum_calls=100_000,
                        breaker__failures_in_a_row=100_000)  # fmt: skip
    return world


def asked(world: World) -> int:
    return sum(len(server.seen) for server in world.servers)


def refusing(pushback: str | None) -> Any:
    """An instance that breaks off each call, and says when to come back."""

    async def refuse(_text: str, context: Any) -> str:
        if pushback is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return ""

    return refuse


async def test_a_repeatable_call_is_made_three_times_at_most(world: World) -> None:
    await world.start(refusing(None), refusing(None))
    assert (await refusal(world.stub.read("x"))).code is grpc.StatusCode.UNAVAILABLE
    assert asked(world) == 3


@pytest.mark.parametrize("pushback", ["-1", "never"])
async def test_a_server_that_forbids_it_gets_no_retry(world: World, pushback: str) -> None:
    await world.start(refusing(pushback), refusing(pushback))
    assert (await refusal(world.stub.read("x"))).code is grpc.StatusCode.UNAVAILABLE
    assert asked(world) == 1


async def test_a_retry_comes_no_earlier_than_the_server_says(world: World) -> None:
    await world.start(refusing("150"), refusing("150"))
    began = time.monotonic()
    await refusal(world.stub.read("x"))
    assert (asked(world), time.monotonic() - began > 0.3) == (3, True)


async def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(world: World) -> None:
    await world.start(refusing("60000"))
    began = time.monotonic()
    await refusal(world.stub.read("x"))
    assert (asked(world), time.monotonic() - began < 1.5) == (1, True)


@pytest.mark.parametrize(("saved", "most"), [(1, 223), (10_000, 600)])
async def test_a_budget_keeps_retries_at_a_tenth_of_the_calls(world: World, saved: int, most: int) -> None:
    """The second case is the control: with a budget as good as none, every call is made three times."""
    world.settings = settings(retry__attempts=3, retry__budget_saved=saved, balancing__left_out_share=0.0,
                        breaker__minimum_calls=100_000, breaker__failures_in_a_row=100_000,
                        retry__first_seconds=0.0001)  # fmt: skip
    world.channel.budget = RetryBudget(lambda: world.settings.retry)
    await world.start(refusing(None), refusing(None))
    for _ in range(200):
        await refusal(world.stub.read("x"))
    assert (asked(world) <= most, asked(world) >= min(most, 210)) == (True, True), asked(world)
    assert world.channel.budget.spent == asked(world) - 200


async def test_a_changed_setting_counts_for_the_next_call(world: World) -> None:
    await world.start(refusing(None), refusing(None))
    await refusal(world.stub.read("x"))
    world.settings = settings(retry__attempts=1)
    await refusal(world.stub.read("y"))
    assert asked(world) == 4


@pytest.mark.parametrize("attempt_seconds", [0.2, 5.0])
async def test_a_try_that_hangs_leaves_time_for_another_instance(world: World, attempt_seconds: float) -> None:
    """The second case is the control: without the shorter try, the deadline passes."""
    world.settings = settings(retry__attempt_seconds=attempt_seconds, balancing__left_out_share=0.0)
    await world.start(never, echo)
    results = await asyncio.gather(*(world.stub.read("x") for _ in range(10)), return_exceptions=True)
    hung = [result for result in results if isinstance(result, RpcError)]
    assert bool(hung) == (attempt_seconds > 2)


async def slow(text: str, _context: Any) -> str:
    await asyncio.sleep(0.4)
    return text


@pytest.mark.parametrize("saved", [1, 100])
async def test_calls_that_take_longer_everywhere_are_waited_for(world: World, saved: int) -> None:
    """With or without a budget: a try is given up only for a better one, and not where all take as long."""
    world.settings = settings(retry__attempt_seconds=0.2, retry__attempts=3, retry__budget_saved=saved,
                        balancing__left_out_share=0.0, deadline_seconds=2.0)  # fmt: skip
    world.channel.budget = RetryBudget(lambda: world.settings.retry)
    await world.start(slow, slow)
    for _ in range(3):
        answers = await asyncio.gather(*(world.stub.read("x") for _ in range(10)))
        assert len(answers) == 10
    assert asked(world) <= 30 + 2 * saved
    assert world.channel.breaker.state == "closed"


def test_a_budget_earns_with_calls_and_with_time_and_saves_no_more_than_it_may() -> None:
    now = 0.0
    limits = RetrySettings(
        attempts=3, attempt_seconds=1.0, first_seconds=0.1, longest_seconds=1.0,
        budget_ratio=0.1, budget_per_second=1.0, budget_saved=2,
    )  # fmt: skip
    budget = RetryBudget(lambda: limits, lambda: now)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
    now += 100
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    assert (budget.spent, budget.refused) == (5, 3)
