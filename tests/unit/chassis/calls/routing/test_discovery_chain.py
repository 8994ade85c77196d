"""What a discovery chain of Consul means for a call: its targets, shares, limits, and what is not followed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from chassis.calls.routing.discovery_chain import InvalidChainError, Leg, Subset, parse, seconds, without_rules
from chassis.calls.routing.followed_fields import ENTRIES, not_followed
from chassis.testing import default_chain

from .recorded_chains import CHAINS, RECORDED, SERVICE, V1, V2

FIRST, SECOND, OTHER = Subset(SERVICE, "v1", V1), Subset(SERVICE, "v2", V2), Subset("order-service")
METHODS = "/shop.user.v1.UserService"


def legs(name: str, method: str = "GetUser") -> list[Leg]:
    """The legs for the calls of a method."""
    route = next(route for route in parse(CHAINS[name]).routes if route.matches(f"{METHODS}/{method}"))
    return list(route.legs)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("protocol_only", [Leg(1.0, (Subset(SERVICE),))]),
        ("default_subset_and_timeout", [Leg(1.0, (FIRST,), seconds=1.5)]),
        ("split", [Leg(0.9, (FIRST,)), Leg(0.1, (SECOND,))]),
        ("split_to_one", [Leg(1.0, (SECOND,))]),
        ("nested_split", [Leg(0.5, (FIRST,)), Leg(0.1, (OTHER,)), Leg(0.4, (SECOND,))]),
        ("failover", [Leg(1.0, (SECOND, FIRST, OTHER))]),
        ("redirect", [Leg(1.0, (OTHER,))]),
        ("failover_to_other_datacenter", [Leg(1.0, (FIRST,))]),
    ],
)
def test_a_chain_gives_the_shares_of_its_targets(name: str, wanted: list[Leg]) -> None:
    assert legs(name) == wanted


def test_a_service_without_rules_has_the_chain_of_any_healthy_instance() -> None:
    assert parse(CHAINS["protocol_only"]) == parse(default_chain(SERVICE)) == without_rules(SERVICE)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("GetUser", [Leg(1.0, (SECOND,), seconds=90.0, attempts=5)]),
        ("GetUserAgain", [Leg(0.9, (FIRST,), seconds=3.0), Leg(0.1, (SECOND,), seconds=3.0)]),
        ("ReserveCredit", [Leg(1.0, (OTHER,))]),
        ("CreateSession", [Leg(0.9, (FIRST,), seconds=math.inf), Leg(0.1, (SECOND,), seconds=math.inf)]),
    ],
    ids=["exact", "otherwise", "prefix", "a negative timeout is none"],
)
def test_a_method_is_routed_by_the_first_route_that_matches(method: str, wanted: list[Leg]) -> None:
    """The limit of a route replaces that of the resolver, which is 3 s for the User Service."""
    assert legs("routes", method) == wanted


def test_fields_that_are_not_followed_are_named_with_their_entry() -> None:
    assert set(parse(CHAINS["not_followed"]).not_followed) == {
        ("service-router user-service", "Routes[0].Match.HTTP.Header"),
        ("service-router user-service", "Routes[1].Match.HTTP.PathRegex"),
        ("service-router user-service", "Routes[2].Destination.PrefixRewrite"),
        ("service-router user-service", "Routes[2].Destination.IdleTimeout"),
        ("service-router user-service", "Routes[2].Destination.RetryOn"),
        ("service-router user-service", "Routes[2].Destination.RetryOnStatusCodes"),
        ("service-splitter user-service", "Splits[0].RequestHeaders"),
        ("service-resolver user-service", "LoadBalancer"),
        ("service-resolver user-service", "ConnectTimeout"),
    }
    assert parse(CHAINS["failover_to_other_datacenter"]).not_followed == (
        ("service-resolver user-service", "Failover to another datacenter"),
    )


def test_a_route_with_a_condition_that_is_not_followed_applies_to_no_call() -> None:
    assert legs("not_followed") == legs("not_followed", "ReserveCredit") == [Leg(0.9, (FIRST,)), Leg(0.1, (SECOND,))]


@pytest.mark.parametrize("name", sorted(set(CHAINS) - {"not_followed", "failover_to_other_datacenter"}))
def test_nothing_else_is_reported(name: str) -> None:
    found = [field for entry in RECORDED[name]["entries"] for field in not_followed(entry, ENTRIES.get(entry["Kind"]))]
    if name == "other_datacenter":
        assert found == ["Redirect.Datacenter"]
    else:
        assert (found, parse(CHAINS[name]).not_followed) == ([], ())


def test_the_same_fields_of_files_are_not_followed() -> None:
    entries = [*RECORDED["not_followed"]["entries"], *RECORDED["failover_to_other_datacenter"]["entries"]]
    fields = {field for each in entries for field in not_followed(each, ENTRIES.get(each["Kind"]))}
    chain = {field for _, field in parse(CHAINS["not_followed"]).not_followed}
    assert fields == chain | {"Failover.*.Datacenters"}


def without(chain: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = copy.deepcopy(chain)
    part = changed
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return changed


SPLIT = CHAINS["split"]
WEIGHTLESS = copy.deepcopy(SPLIT)
for split in WEIGHTLESS["Nodes"][SPLIT["StartNode"]]["Splits"]:
    split["Weight"] = 0


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (CHAINS["other_datacenter"], "is in another datacenter"),
        (without(SPLIT, "StartNode"), "KeyError: 'StartNode'"),
        (without(SPLIT, "Nodes", "resolver:v2.user-service.default.default.dc1"), "KeyError: 'resolver:v2"),
        (without(SPLIT, "Targets", "v2.user-service.default.default.dc1"), "KeyError: 'v2.user-service"),
        (SPLIT | {"Nodes": []}, "TypeError"),
        (SPLIT | {"Nodes": {SPLIT["StartNode"]: {"Type": "mirror"}}}, "is a mirror"),
        (
            CHAINS["not_followed"] | {"Nodes": {CHAINS["routes"]["StartNode"]: {"Type": "router", "Routes": []}}},
            "no route",
        ),
        (WEIGHTLESS, "the weights of splitter:user-service.default.default are 0"),
    ],
)
def test_a_chain_that_cannot_be_followed_is_an_error_that_says_why(chain: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidChainError, match=why):
        parse(chain)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2s", 2),
        ("1m30s", 90),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("-1s", -1),
        ("1h0m0.5s", 3600.5),
        (1_500_000_000, 1.5),
        ("0", 0),
    ],
)
def test_a_duration_is_read_as_go_writes_it(text: str | int, wanted: float) -> None:
    assert seconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["2", "2 s", "s", "1d", "", "-", "1s2"])
def test_what_is_no_duration_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)
