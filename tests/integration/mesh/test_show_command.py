"""`./justw mesh show` on a running stack: what it says of calls and certificates is what callers notice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.mesh.channels import mesh_channel
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually

from chassis.mesh.names import server_name, spiffe_id
from stack.mesh.dial import instances

from .raw_calls import METHODS, REACHED, code_of

CALLERS = ("gateway", "operator", "order-service", "user-service")


def shown() -> dict[str, Any]:
    done = run("mesh", "show", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("service", METHODS)
def test_the_callers_that_it_shows_reach_a_method_and_no_others(running: RunningStack, service: str) -> None:
    (found,) = (each for each in shown()["services"] if each["name"] == service)
    assert (found["enforced"], found["problem"]) == (True, None)
    allowed = {method["path"]: set(method["allowed"]) for method in found["methods"]}
    reached: dict[str, set[str]] = {path: set() for path in METHODS[service]}
    for caller in CALLERS:
        with mesh_channel(running.clients, service, as_=caller) as channel:
            for path in METHODS[service]:
                if code_of(channel, path) is REACHED:
                    reached[path].add(caller)
    assert {path: allowed[path] for path in METHODS[service]} == reached


def test_each_healthy_instance_has_a_certificate_that_ends_within_an_hour(running: RunningStack) -> None:
    found = shown()
    services = ("gateway", *METHODS)
    addresses = {f"{host}:{port}": name for name in services for host, port in instances(running.clients, name)}
    addresses[f"127.0.0.1:{running.stack.port('gateway_https')}"] = "edge"
    assert {row["address"]: row["service"] for row in found["certificates"]} == addresses
    for row in found["certificates"]:
        assert row["error"] is None
        public = ["localhost"] if row["service"] == "edge" else []
        names = [server_name(row["service"]), *public, spiffe_id(row["service"], found["trust_domain"])]
        assert row["names"] == names
        assert 0 < row["minutes_left"] <= 60


def test_calls_of_the_last_minutes_are_counted_by_caller_and_method(running: RunningStack) -> None:
    path = METHODS["order-service"][0]
    calls = {"operator": "allowed", "user-service": "denied"}
    for caller in calls:
        with mesh_channel(running.clients, "order-service", as_=caller) as channel:
            code_of(channel, path)

    def counted() -> bool:
        found = shown()["recent"] or pytest.skip("this stack has no telemetry")
        rows = {(row["caller"], row["method"]): row for row in found["calls"] if row["service"] == "order-service"}
        return all(rows.get((caller, path), {kind: 0})[kind] > 0 for caller, kind in calls.items())

    eventually("they are counted", counted, 60, every=1)


def test_the_text_names_every_method_and_instance(running: RunningStack) -> None:
    done = run("mesh", "show")
    assert done.returncode == 0, done.stderr
    assert [path for paths in METHODS.values() for path in paths if path[1:] not in done.stdout] == []
    addresses = [f"{host}:{port}" for name in METHODS for host, port in instances(running.clients, name)]
    assert [address for address in addresses if address not in done.stdout] == []


def test_nothing_is_missing_where_there_is_telemetry() -> None:
    if shown()["recent"] is None:
        pytest.skip("this stack has no telemetry")
    assert "! " not in run("mesh", "show").stdout
