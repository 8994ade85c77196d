"""Traffic rules change while calls run: none of them fails by that, and bad rules never replace good ones."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from support.mesh.kept_rules import kept
from support.waiting import until

from chassis.calls.routing import router

from ...echo_service import echo
from .recorded_chains import CHAINS, SERVICE, V2
from .routed_calls import RoutedCalls, gated, route, routes

INVALID = CHAINS["other_datacenter"]


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
    listed, before = calls.consul.hide(V2), kept(SERVICE, "no instances read")
    with capture_logs() as logs:
        calls.consul.route(SERVICE, CHAINS["split_to_one"])
        await until("it is reported", lambda: kept(SERVICE, "no instances read") == before + 1)
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
    before = kept(SERVICE, "invalid")
    with capture_logs() as logs:
        calls.consul.route(SERVICE, INVALID)
        await until("it is counted", lambda: kept(SERVICE, "invalid") == before + 1)
        calls.consul.put("another", "change")
        await asyncio.sleep(0.05)  # for a switch that must not begin
        for _ in range(10):
            await calls.stub.say("x")
    warnings = [each for each in logs if each["log_level"] == "warning"]
    assert [(each["target"], each["why"]) for each in warnings] == [
        (SERVICE, "user-service.default.default.dc2 is in another datacenter")
    ]
    assert calls.seen() == {"one": 10, "two": 0}
    await calls.route("split_to_one")
    await calls.stub.say("x")
    assert calls.seen() == {"one": 10, "two": 1}


async def test_a_process_that_starts_with_an_invalid_chain_calls_any_instance(calls: RoutedCalls) -> None:
    calls.consul.route(SERVICE, INVALID)
    await calls.serve(one=echo)
    assert (await calls.stub.say("x"), calls.channel.dependency()) == ("x", "ok")


async def test_an_outage_of_consul_is_counted_and_the_last_rules_stay(calls: RoutedCalls) -> None:
    await calls.serve(one=echo, two=echo)
    await calls.route("split_to_one")
    before = kept(SERVICE, "unreachable")
    for report in calls.consul.outages:
        report()
    await calls.stub.say("x")
    assert (kept(SERVICE, "unreachable") - before, calls.seen()) == (1, {"one": 0, "two": 1})


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
