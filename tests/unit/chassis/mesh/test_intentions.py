"""Intentions decide as Consul documents it, and whatever cannot be checked is not allowed."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.mesh.intentions import Intentions

PATH, OTHER = "/shop.User/Get", "/shop.User/Delete"


def intention(caller: str, precedence: int = 9, **rules: Any) -> dict[str, Any]:
    return {"SourceName": caller, "SourceType": "consul", "Precedence": precedence, **rules}


def permission(action: str, **http: Any) -> dict[str, Any]:
    return {"Action": action, "HTTP": http}


def allowed(*found: dict[str, Any], caller: str = "gateway", path: str = PATH) -> bool:
    intentions = Intentions("user-service")
    intentions.replace(found)
    return intentions.allow(caller, path)


def test_before_consul_has_answered_nobody_may_call() -> None:
    intentions = Intentions("user-service")
    assert not intentions.allow("gateway", PATH)
    assert intentions.readiness() == "no intentions from Consul yet"


def test_without_an_intention_for_it_a_caller_may_call_nothing() -> None:
    assert not allowed()
    assert not allowed(intention("other", Action="allow"))


def test_an_action_holds_for_every_method() -> None:
    assert allowed(intention("gateway", Action="allow"))
    assert not allowed(intention("gateway", Action="deny"))


@pytest.mark.parametrize(
    ("http", "matches"),
    [
        ({"PathExact": PATH}, True),
        ({"PathExact": OTHER}, False),
        ({"PathExact": "/shop.User/G.t"}, False),
        ({"PathPrefix": "/shop.User/"}, True),
        ({"PathPrefix": "/shop.Us.r/"}, False),
        ({"PathRegex": "/shop[.]User/(Get|List)"}, True),
        ({"PathRegex": "/shop[.]User/"}, False),
        ({"PathExact": PATH, "Methods": ["GET"]}, False),
        ({"PathExact": PATH, "Methods": ["GET", "POST"]}, True),
        ({"PathExact": PATH, "Methods": None, "PathPrefix": "", "Header": None}, True),
    ],
)
def test_a_permission_holds_for_the_calls_that_match(http: dict[str, Any], matches: bool) -> None:
    assert allowed(intention("gateway", Permissions=[permission("allow", **http)])) is matches
    denied = [permission("deny", **http), permission("allow", PathPrefix="/")]
    assert allowed(intention("gateway", Permissions=denied)) is not matches


def test_the_first_permission_that_matches_decides_and_without_one_nothing_is_allowed() -> None:
    rules = [permission("deny", PathExact=OTHER), permission("allow", PathPrefix="/shop.User/")]
    found = intention("gateway", Permissions=rules)
    assert allowed(found)
    assert not allowed(found, path=OTHER)
    assert not allowed(found, path="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")


@pytest.mark.parametrize(
    "condition", [{"Header": [{"Name": "x", "Exact": "y"}]}, {"PathRegex": "("}, {"Invented": "later"}]
)
def test_a_condition_that_cannot_be_checked_allows_nothing_and_denies_all_the_same(condition: dict[str, Any]) -> None:
    assert not allowed(intention("gateway", Permissions=[permission("allow", **condition)]))
    rules = [permission("deny", **condition), permission("allow", PathPrefix="/")]
    assert not allowed(intention("gateway", Permissions=rules))


def test_a_token_that_a_permission_demands_cannot_be_checked() -> None:
    rule = permission("allow", PathExact=PATH) | {"JWT": {"Providers": [{"Name": "okta"}]}}
    assert not allowed(intention("gateway", Permissions=[rule]))


def test_the_intention_of_the_highest_precedence_decides() -> None:
    anybody = intention("*", precedence=8, Action="allow")
    assert allowed(anybody)
    assert not allowed(anybody, intention("gateway", Action="deny"))
    assert not allowed(intention("*", precedence=8, Action="deny"), intention("other", Action="allow"))


def test_a_caller_of_a_peer_of_the_same_name_is_another_caller() -> None:
    assert not allowed(intention("gateway", Action="allow", SourcePeer="elsewhere"))
    assert not allowed({**intention("gateway", Action="allow"), "SourceType": "external"})


@pytest.mark.parametrize(("methods", "allows"), [([], True), (["GET"], True), (["HEAD", "POST"], False)])
def test_a_permission_of_http_may_name_methods(methods: list[str], allows: bool) -> None:
    intentions = Intentions("gateway")
    intentions.replace([intention("edge", Permissions=[permission("allow", PathPrefix="/v1/", Methods=methods)])])
    assert intentions.allow("edge", "/v1/orders", "GET") is allows
    assert not intentions.allow("edge", "/docs", "GET")


def test_however_many_paths_a_caller_invents_few_decisions_are_kept() -> None:
    intentions = Intentions("gateway")
    intentions.replace(
        [
            intention("edge", Permissions=[permission("allow", PathPrefix="/v1/")]),
            intention("operator", Action="allow"),
        ]
    )
    for number in range(3000):
        assert intentions.allow("edge", f"/v1/{number}", "GET")
        assert not intentions.allow("edge", f"/{number}", "GET")
        assert intentions.allow("operator", f"/{number}", "GET")
    assert len(intentions._decided) <= 1000


def test_a_change_holds_for_the_next_call() -> None:
    intentions = Intentions("user-service")
    intentions.replace([intention("gateway", Action="allow")])
    assert intentions.allow("gateway", PATH)
    intentions.replace([])
    assert not intentions.allow("gateway", PATH)
    assert intentions.readiness() is None
