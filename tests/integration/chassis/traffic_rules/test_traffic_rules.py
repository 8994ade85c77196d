"""Calls follow traffic rules of a real Consul: their shares, changes under load, and rules that cannot be followed."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import pytest
from support.mesh.kept_rules import kept
from support.waiting import until

from chassis.errors import RpcError

from .routed_caller import RESOLVER, SERVICE, VERSIONS, Caller, splitter


async def test_without_rules_all_instances_get_calls(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await until("both are known", lambda: caller.reaches(2))
    assert caller.channel.breakers() == {SERVICE: "closed"}


async def test_ten_thousand_calls_are_split_90_to_10(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER, splitter(90))
    await until("the rules apply", lambda: len(caller.channel.breakers()) == 2)
    found = await caller.many(10_000)
    print(f"90/10 over {found.total()} calls: {found}")
    assert found.total() == 10_000
    assert 800 < found["two"] < 1200


async def test_a_change_applies_within_a_second_and_no_call_fails(caller: Caller) -> None:
    await caller.serve("v1", pause=0.02, version="1")
    await caller.serve("v2", pause=0.02, version="2")
    await caller.put(RESOLVER, splitter(100))
    await until("the rules apply", lambda: caller.channel.breakers().keys() == {"v1.user-service"})
    failed: list[RpcError] = []
    last, done, seconds = "", False, []

    async def load() -> None:
        nonlocal last
        while not done:
            try:
                last = await caller.call()
            except RpcError as error:
                failed.append(error)

    load_tasks = [asyncio.create_task(load()) for _ in range(10)]
    for wanted in ("v2", "v1") * 5:
        await caller.put(splitter(0 if wanted == "v2" else 100))
        began = time.monotonic()
        await until(f"{wanted} answers", lambda: last == wanted)  # noqa: B023
        seconds.append(time.monotonic() - began)
    done = True
    await asyncio.gather(*load_tasks)
    print(f"ten changes applied after {[round(each, 3) for each in seconds]} s")
    assert failed == []
    assert statistics.median(seconds) < 1


NOT_EVALUATED = RESOLVER | {"DefaultSubset": "v2", "Subsets": VERSIONS | {"v2": {"Filter": "Service.No == 1"}}}
ELSEWHERE = {"Kind": "service-resolver", "Name": SERVICE, "Redirect": {"Datacenter": "dc2"}}


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        # Consul accepts the entry, compiles the chain, and rejects the query for the instances.
        pytest.param(NOT_EVALUATED, "no instances read", id="a filter that Consul cannot evaluate"),
        pytest.param(ELSEWHERE, "invalid", id="another datacenter"),
    ],
)
async def test_a_rule_that_cannot_be_followed_keeps_the_last_ones(
    caller: Caller, rule: dict[str, Any], reason: str
) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER | {"DefaultSubset": "v1"})
    await caller.until_at("one")
    before = kept(SERVICE, reason)
    await caller.put(rule)
    await until("it is counted", lambda: kept(SERVICE, reason) > before)
    assert await caller.many(100) == {"one": 100}
    await caller.put(RESOLVER | {"DefaultSubset": "v2"})
    await caller.until_at("two")


async def test_rules_outlast_consul(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER | {"DefaultSubset": "v2"})
    await caller.until_at("two")
    with caller.agent.stopped():
        assert await caller.many(100) == {"two": 100}


async def test_a_rule_for_a_service_that_the_caller_may_not_find_keeps_the_last_rules(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("hidden", service="ledger")
    await caller.until_at("one")
    await caller.put({"Kind": "service-defaults", "Name": "ledger", "Protocol": "grpc"})
    before = kept(SERVICE, "no instances read")
    await caller.put({"Kind": "service-resolver", "Name": SERVICE, "Redirect": {"Service": "ledger"}})
    await until("it is counted", lambda: kept(SERVICE, "no instances read") > before)
    assert await caller.many(100) == {"one": 100}
