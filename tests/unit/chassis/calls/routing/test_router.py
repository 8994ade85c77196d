"""Each call goes to the target that the traffic rules of Consul say, within their limits; real gRPC servers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from support.waiting import until

from chassis.calls.routing.router import Split
from chassis.errors import RpcError
from chassis.telemetry.metrics import collect

from ...backends import error_of
from ...echo_service import READ, SAY, echo, never
from .recorded_chains import CHAINS, SERVICE, V2
from .routed_calls import RoutedCalls, route, routes


async def failing(_text: str, context: Any) -> str:
    await context.abort(grpc.StatusCode.INTERNAL, "broken")
    return ""


# --- which target


async def test_without_rules_calls_go_to_all_instances(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    for _ in range(40):
        await calls.stub.say("x")
    assert min(calls.seen().values()) > 5


async def test_a_call_made_before_the_rules_are_known_follows_them(calls: RoutedCalls) -> None:
    calls.consul.route(SERVICE, CHAINS["split_to_one"])
    listed = calls.consul.hide(V2)
    await calls.serve(one=echo, two=echo)
    call = asyncio.create_task(calls.stub.say("early"))
    await asyncio.sleep(0.05)
    assert (calls.seen(), calls.channel.readiness()) == ({"one": 0, "two": 0}, "addresses not read from consul yet")
    listed.set()
    assert (await call, calls.seen()) == ("early", {"one": 0, "two": 1})
    assert calls.channel.readiness() is None


async def test_a_call_fails_if_the_rules_do_not_become_known(calls: RoutedCalls) -> None:
    calls.consul.hide("")
    error = await error_of(calls.stub.say("x", timeout=0.1))
    assert (error.code, error.retry_after) == (grpc.StatusCode.UNAVAILABLE, 1.0)
    with pytest.raises(RpcError, match="no instance of user-service"):
        await calls.stub.count(1, timeout=0.1)


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.5, 0.5), (0.01, 0.99), (0.2, 0.3, 0.5)])
def test_the_shares_of_a_split_are_those_of_its_weights(weights: tuple[float, ...]) -> None:
    legs: list[Any] = list(range(len(weights)))
    found = Counter(Split(legs, weights).choose() for _ in range(10_000))
    for leg, weight in enumerate(weights):
        assert abs(found[leg] / 10_000 - weight) < 0.02  # type: ignore[index]


async def test_calls_are_split_by_weight(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split")
    for _ in range(500):
        await calls.stub.say("x")
    assert 10 < calls.seen()["two"] < 120  # 50 by its weight; six times the standard deviation are 40


async def test_a_method_is_routed(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo, other=echo)
    await calls.route(
        routes(route(SAY, {}, "v2.user-service"), route(READ, {"Service": "order-service"}, "order-service"))
    )
    for _ in range(5):
        await calls.stub.say("x")
        await calls.stub.read("x")
    assert calls.seen() == {"one": 0, "two": 5, "other": 5}


async def test_a_target_without_an_instance_fails_over_while_it_has_none(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo, other=echo)
    await calls.route("failover")
    for absent in ((), ("two",), ("one", "two"), ()):
        calls.announce(*absent)
        before = calls.seen()
        wanted = next(name for name in ("two", "one", "other") if name not in absent)
        targets = calls.router.current.targets.values() if calls.router.current else ()
        await until(
            "the list is read",
            lambda: sum(len(each.endpoints.current) for each in targets) == 3 - len(absent),  # noqa: B023
        )
        await calls.stub.say("x")
        assert calls.seen() == before | {wanted: before[wanted] + 1}
        assert calls.channel.dependency() == "ok"


async def test_a_subset_without_an_instance_is_reported_and_its_calls_fail(calls: RoutedCalls) -> None:
    await calls.serve(one=echo)
    await calls.route("split_to_one")
    assert (await error_of(calls.stub.say("x"))).message == "no healthy instance of v2.user-service"
    assert calls.channel.dependency() == "no healthy instance of v2.user-service"


# --- limits


async def test_a_request_timeout_caps_the_deadline_of_a_call_and_of_a_stream(calls: RoutedCalls) -> None:
    await calls.serve(one=never, two=never)
    for method in (SAY, "/test.Echo/Count"):
        await calls.route(routes(route(method, {"RequestTimeout": "200ms"}, "v1.user-service")))
        call = calls.stub.say("1") if method == SAY else calls.stub.count(1)
        began = time.monotonic()
        assert (await error_of(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0.15 < time.monotonic() - began < 1.5, "the setting permits 2 s"


async def test_a_request_timeout_does_not_lengthen_the_deadline(calls: RoutedCalls) -> None:
    await calls.serve(one=never, two=never)
    await calls.route(routes(route(SAY, {"RequestTimeout": "30s"}, "v1.user-service")))
    began = time.monotonic()
    assert (await error_of(calls.stub.say("x", timeout=0.2))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(("retries", "attempts"), [(0, 2), (3, 4)])
async def test_the_number_of_retries_of_a_route_replaces_that_of_the_settings(
    calls: RoutedCalls, retries: int, attempts: int
) -> None:
    async def lost(_text: str, context: Any) -> str:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        return ""

    await calls.serve(one=lost)
    await calls.route(routes(route(READ, {"NumRetries": retries}, "v1.user-service")))
    await error_of(calls.stub.read("x"))
    assert calls.seen() == {"one": attempts}


async def test_a_failing_target_has_no_effect_on_another_one(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=failing)
    await calls.route(routes(route(SAY, {}, "v2.user-service"), route(READ, {}, "v1.user-service")))
    errors = [(await error_of(calls.stub.say("x"))).reason for _ in range(10)]
    assert errors[-1] == "BREAKER_OPEN"
    assert [await calls.stub.read(str(number)) for number in range(5)] == list("01234")
    breakers = calls.channel.breakers()
    assert (breakers["v1.user-service"], breakers["v2.user-service"]) == ("closed", "open")


async def test_the_calls_of_a_subset_are_a_series_of_their_own(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split_to_one")
    await calls.stub.say("x")
    (metric,) = (each for each in collect(time.time_ns()) if each.name == "rpc.client.duration")
    subsets = {(point.attributes or {}).get("rpc.subset") for point in metric.data.data_points}
    assert "v2" in subsets
