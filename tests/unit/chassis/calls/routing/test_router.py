"""Calls follow the traffic rules of Consul as they change, and never fail because they do; real gRPC servers."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from support.waiting import until

from chassis.calls.routing import router
from chassis.calls.routing.router import Split
from chassis.errors import RpcError
from chassis.telemetry.metrics import collect

from ...backends import error_of
from ...echo_service import READ, SAY, Behaviour, echo, never
from .recorded_chains import CHAINS, SERVICE, V2
from .routed_calls import RoutedCalls, routed_calls

INVALID = CHAINS["other_datacenter"]


@pytest.fixture
async def calls() -> AsyncIterator[RoutedCalls]:
    async with routed_calls() as made:
        yield made


def route(path: str, destination: dict[str, Any], node: str) -> dict[str, Any]:
    definition = {"Match": {"HTTP": {"PathExact": path}}, "Destination": destination}
    return {"Definition": definition, "NextNode": f"resolver:{node}.default.default.dc1"}


def routes(*wanted: dict[str, Any]) -> dict[str, Any]:
    """The recorded chain with other routes before the last one."""
    chain = copy.deepcopy(CHAINS["routes"])
    node = chain["Nodes"][chain["StartNode"]]
    node["Routes"] = [*wanted, node["Routes"][-1]]
    return chain


def kept(reason: str) -> int:
    """How often the last rules stayed in use for a reason."""
    metric = next((metric for metric in collect(time.time_ns()) if metric.name == "traffic_rules.kept"), None)
    points: list[Any] = list(metric.data.data_points) if metric else []
    return sum(p.value for p in points if p.attributes == {"rpc.service": SERVICE, "reason": reason})


async def failing(_text: str, context: Any) -> str:
    await context.abort(grpc.StatusCode.INTERNAL, "broken")
    return ""


def gated(gate: asyncio.Event) -> Behaviour:
    async def behave(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    return behave


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


# --- changes


async def test_a_change_applies_to_the_next_call_and_the_one_in_progress_ends_where_it_is(calls: RoutedCalls) -> None:
    gate = asyncio.Event()
    await calls.serve(one=gated(gate), two=echo)
    await calls.route("default_subset_and_timeout")
    call = asyncio.create_task(calls.stub.say("kept"))
    await until("the call has arrived", lambda: calls.servers["one"].seen == ["kept"])
    await calls.route("split_to_one")
    assert [await calls.stub.say(str(number)) for number in range(5)] == list("01234")
    assert calls.seen() == {"one": 1, "two": 5}
    gate.set()
    assert await call == "kept"


async def test_a_stream_goes_on_at_a_target_that_is_not_used_any_more(
    calls: RoutedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_IDLE_CHECK_SECONDS", 0.01)
    gate = asyncio.Event()
    await calls.serve(one=gated(gate), two=echo)
    await calls.route(routes(route("/test.Echo/Count", {"RequestTimeout": "-1s"}, "v1.user-service")))
    stream = asyncio.create_task(calls.stub.count(3))
    await until("the stream has begun", lambda: calls.servers["one"].seen == ["3"])
    await calls.route("split_to_one")
    await until("the old target is retired", lambda: not calls.router._retiring)
    gate.set()
    assert await stream == ["0", "1", "2"]


async def test_a_call_that_is_repeated_stays_at_its_target(calls: RoutedCalls) -> None:
    gate, seen = asyncio.Event(), []

    async def lost_once(text: str, context: Any) -> str:
        seen.append(text)
        if len(seen) == 1:
            await gate.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        return text

    await calls.serve(one=lost_once, two=echo)
    await calls.route("default_subset_and_timeout")
    call = asyncio.create_task(calls.stub.read("again"))
    await until("the first attempt has arrived", lambda: len(seen) == 1)
    await calls.route("split_to_one")
    gate.set()
    assert (await call, seen, calls.seen()["two"]) == ("again", ["again", "again"], 0)


async def test_a_target_that_is_not_used_any_more_ends(calls: RoutedCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_IDLE_CHECK_SECONDS", 0.01)
    await calls.serve(one=echo, two=echo)
    await calls.route("default_subset_and_timeout")
    await calls.stub.say("x")
    (old,) = calls.router._targets.values()
    watch = old.endpoints._watch
    assert watch is not None
    followers = len(calls.settings._callbacks)
    await calls.route("split_to_one")
    await until("its watch has ended", watch.cancelled)
    assert (old.endpoints.current, old.balancer._instances) == ((), {})
    assert len(calls.settings._callbacks) == followers, "one breaker follows the settings, as before"
    assert {each.name for each in calls.router._targets.values()} == {"v2.user-service"}


async def test_rules_apply_once_the_instances_of_their_targets_are_known(
    calls: RoutedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_LOAD_SECONDS", 0.01)
    await calls.serve(one=echo, two=echo)
    await calls.route("default_subset_and_timeout")
    listed, before = calls.consul.hide(V2), kept("no instances read")
    with capture_logs() as logs:
        calls.consul.route(SERVICE, CHAINS["split_to_one"])
        await until("it is reported", lambda: kept("no instances read") == before + 1)
        await calls.stub.say("x")
    assert [each["missing"] for each in logs if "missing" in each] == [["v2.user-service"]]
    assert calls.seen() == {"one": 1, "two": 0}
    listed.set()
    await until("the rules apply", lambda: calls.channel.breakers().keys() == {"v2.user-service"})
    await calls.stub.say("x")
    assert calls.seen() == {"one": 1, "two": 1}


async def test_rules_that_cannot_apply_are_replaced_by_the_next_ones(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("default_subset_and_timeout")
    calls.consul.hide(V2)
    calls.consul.route(SERVICE, CHAINS["split_to_one"])
    await until("the target is awaited", lambda: len(calls.router._targets) == 2)
    await calls.route("protocol_only")
    assert calls.channel.breakers() == {SERVICE: "closed"}
    assert [target.name for target in calls.router._targets.values()] == [SERVICE]


async def test_an_invalid_chain_is_reported_once_and_the_last_rules_stay(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("default_subset_and_timeout")
    before = kept("invalid")
    with capture_logs() as logs:
        calls.consul.route(SERVICE, INVALID)
        await until("it is counted", lambda: kept("invalid") == before + 1)
        calls.consul.put("another", "change")
        await calls.stub.say("x")
    warnings = [each for each in logs if each["log_level"] == "warning"]
    assert [(each["target"], each["why"]) for each in warnings] == [
        (SERVICE, "user-service.default.default.dc2 is in another datacenter")
    ]
    assert calls.seen() == {"one": 1, "two": 0}
    await calls.route("split_to_one")
    await calls.stub.say("x")
    assert calls.seen() == {"one": 1, "two": 1}


async def test_a_process_that_starts_with_an_invalid_chain_calls_any_instance(calls: RoutedCalls) -> None:
    calls.consul.route(SERVICE, INVALID)
    await calls.serve(one=echo)
    assert (await calls.stub.say("x"), calls.channel.dependency()) == ("x", "ok")


async def test_an_outage_of_consul_is_counted_and_the_last_rules_stay(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split_to_one")
    before = kept("unreachable")
    for report in calls.consul.outages:
        report()
    await calls.stub.say("x")
    assert (kept("unreachable") - before, calls.seen()) == (1, {"one": 0, "two": 1})


async def test_a_field_that_is_not_followed_is_logged_by_name(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    with capture_logs() as logs:
        await calls.route("not_followed")
    found = {(each["entry"], each["field"]) for each in logs if "field" in each}
    assert ("service-router user-service", "Routes[0].Match.HTTP.Header") in found
    assert ("service-resolver user-service", "LoadBalancer") in found


async def test_a_chain_that_means_the_same_changes_nothing(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split")
    before = calls.router.current
    calls.consul.route(SERVICE, CHAINS["split"] | {"AutoVirtualIPs": ["240.0.0.9"]})
    await calls.stub.say("x")
    assert calls.router.current is before


async def test_the_calls_of_a_subset_are_a_series_of_their_own(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split_to_one")
    await calls.stub.say("x")
    (metric,) = (each for each in collect(time.time_ns()) if each.name == "rpc.client.duration")
    subsets = {(point.attributes or {}).get("rpc.subset") for point in metric.data.data_points}
    assert "v2" in subsets
