"""One of two instances is slow and sheds load, at a load that the other one can carry; real gRPC servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from chassis.calls.balancing import Balancer
from chassis.calls.outlier_detection import EJECTION_RULES, EjectionRules
from chassis.calls.routing.target import Target
from chassis.calls.transport import GrpcTransport
from chassis.errors import RpcError
from chassis.serving.limiter import Limiter, LimiterSettings
from chassis.settings import Live

from ..backends import Backends, channel_to, error_of
from ..echo_service import Echo, Stub, echo

USUAL_SECONDS, SLOW_SECONDS = 0.05, 0.35
PER_SECOND, CALLS = 40, 160


def after(seconds: float) -> Any:
    async def answer(text: str, _context: Any) -> str:
        await asyncio.sleep(seconds)
        return text

    return answer


def shed(pushback: float | None) -> Any:
    """Returns the behaviour of an instance that rejects every call as its limiter does."""

    async def reject(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "full", retry_after=1.0, pushback=pushback)

    return reject


async def start_limited(backends: Backends, *seconds: float, at_least: int) -> list[Echo]:
    """Starts an instance for each time of an answer; its limit shrinks down to `at_least` calls while it is slow."""
    bounds = LimiterSettings(
        calls_at_least=at_least, calls_at_most=256, target_seconds=0.25, shrink=0.5, retry_after_seconds=1.0
    )
    limiters = [Limiter("echo", Live(bounds)) for _ in seconds]
    started = [await Echo(after(each), limiter).start() for each, limiter in zip(seconds, limiters, strict=True)]
    backends.servers += started
    backends.announce(*started)
    return started


async def answered(stub: Stub) -> float:
    """Makes calls at a fixed rate, which may not be repeated after a handler began; returns the share answered."""
    results: Counter[str] = Counter()

    async def call() -> None:
        try:
            await stub.say("x")
            results["answered"] += 1
        except RpcError as error:
            results[error.reason] += 1

    async with asyncio.TaskGroup() as calls:
        for _ in range(CALLS):
            calls.create_task(call())
            await asyncio.sleep(1 / PER_SECOND)
    print(dict(results))
    return results["answered"] / CALLS


@pytest.mark.parametrize("at_least", [1, 2, 4])
async def test_one_slow_instance_of_two_leaves_95_percent_answered(backends: Backends, at_least: int) -> None:
    backends.change(attempts=3, ejection_seconds=0.0)
    slow, usual = await start_limited(backends, SLOW_SECONDS, USUAL_SECONDS, at_least=at_least)
    assert await answered(backends.stub) >= 0.95
    assert len(usual.seen) > 2 * len(slow.seen)


async def test_one_slow_instance_takes_most_calls_if_rejections_make_it_look_idle(backends: Backends) -> None:
    """Control: shed calls are no load of their instance, and there are no retries."""
    backends.change(attempts=1, ejection_seconds=0.0)
    backends.target = _without_shed_load(backends)
    await start_limited(backends, SLOW_SECONDS, USUAL_SECONDS, at_least=2)
    assert await answered(Stub(channel_to(backends.target, backends.settings))) < 0.9


async def test_two_slow_instances_cannot_carry_the_load(backends: Backends) -> None:
    """Control: the load is too much for instances that are as slow as the one above."""
    backends.change(attempts=3, ejection_seconds=0.0)
    await start_limited(backends, SLOW_SECONDS, SLOW_SECONDS, at_least=2)
    assert await answered(backends.stub) < 0.9


@pytest.mark.parametrize("pushback", [None, -1.0])
async def test_a_call_that_is_shed_is_made_at_an_instance_with_capacity(
    backends: Backends, pushback: float | None
) -> None:
    """Also if the server forbids a retry: it can do so only for itself."""
    backends.change(retry_budget_ratio=0.0)
    await backends.start(shed(pushback), echo)
    for number in range(100):
        assert await backends.stub.say(str(number)) == str(number)


async def test_a_call_that_is_shed_goes_to_the_only_instance_with_capacity(backends: Backends) -> None:
    backends.change(attempts=2)
    await backends.start(shed(-1.0), shed(-1.0), shed(-1.0), after(0.01))
    await asyncio.gather(*(backends.stub.say("warm") for _ in range(20)), return_exceptions=True)
    for _ in range(5):
        results = await asyncio.gather(*(backends.stub.say("x") for _ in range(20)), return_exceptions=True)
        assert results == ["x"] * 20


async def test_a_call_that_every_instance_sheds_is_not_multiplied(backends: Backends) -> None:
    backends.change(attempts=3)
    servers = await backends.start(shed(-1.0), shed(-1.0))
    for _ in range(100):
        assert (await error_of(backends.stub.say("x"))).reason == "OVERLOADED"
    assert sum(len(server.seen) for server in servers) <= 102


async def test_shed_load_is_neither_a_fault_nor_the_answer_to_a_probe(backends: Backends) -> None:
    backends.change(ejection_seconds=0.3)
    overloaded, _ = await backends.start(shed(-1.0), echo)
    for _ in range(50):
        await backends.stub.say("x")
    balancer: Balancer = backends.target.balancer
    assert balancer.ejected == []
    instance = next(each for each in balancer._instances.values() if each.endpoint.address == overloaded.address)
    balancer._eject(instance, balancer._clock(), "failures")
    await asyncio.sleep(0.35)
    while not balancer.ejected:
        await backends.stub.say("probe")
    assert instance.ejections == 2


def _without_shed_load(backends: Backends) -> Target:
    rules = EjectionRules(**{**vars(EJECTION_RULES), "shed_seconds": 0.0})
    return Target(backends.endpoints, backends.settings, GrpcTransport(), ejection_rules=rules)
