"""Who may call what: each method of each service is in this table, and the intentions say the same."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from chassis.mesh.intentions import Intentions
from shop.order.v1 import order_pb2
from shop.user.v1 import user_pb2
from stack.cluster.mesh import config_entries

from ..repository import ROOT

SERVICES: dict[str, ServiceDescriptor] = {
    "user-service": user_pb2.DESCRIPTOR.services_by_name["UserService"],
    "order-service": order_pb2.DESCRIPTOR.services_by_name["OrderService"],
}
GATEWAY, WORKER = "gateway", "order-service"
CALLERS = (GATEWAY, "order-service", "user-service", "edge", "postgres", "anybody")
# A new method belongs here first. An operator may call all of them.
TABLE: dict[str, dict[str, set[str]]] = {
    "user-service": {
        "RegisterUser": {GATEWAY},
        "CreateSession": {GATEWAY},
        "GetUser": {GATEWAY},
        "ReserveCredit": {WORKER},
        "ReleaseCredit": {WORKER},
    },
    "order-service": {
        "PlaceOrder": {GATEWAY},
        "GetOrder": {GATEWAY},
        "ListOrders": {GATEWAY},
        "CancelOrder": {GATEWAY},
        "ListOrderEvents": {GATEWAY},
        "WatchOrder": {GATEWAY},
    },
}


def intentions(service: str) -> Intentions:
    """The intentions of the files, as Consul returns them."""
    entry = config_entries.read(ROOT / "consul" / "intentions" / f"{service}.hcl", "service-intentions")
    found: list[dict[str, Any]] = [{"SourceName": each["Name"], "Precedence": 9, **each} for each in entry["Sources"]]
    made = Intentions(service)
    made.replace(found)
    return made


@pytest.mark.parametrize("service", SERVICES)
def test_each_method_of_the_contract_is_in_the_table(service: str) -> None:
    assert set(TABLE[service]) == {method.name for method in SERVICES[service].methods}


@pytest.mark.parametrize("service", SERVICES)
def test_the_intentions_allow_what_the_table_says_and_nothing_else(service: str) -> None:
    found, name = intentions(service), SERVICES[service].full_name
    allowed = {method: {c for c in CALLERS if found.allow(c, f"/{name}/{method}")} for method in TABLE[service]}
    assert allowed == TABLE[service]


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_health_and_what_does_not_exist_is_for_operators(service: str) -> None:
    found = intentions(service)
    others = (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/a.B/C",
    )
    methods = [f"/{SERVICES[service].full_name}/{method}" for method in (*TABLE[service], "Later")]
    assert all(found.allow("operator", path) for path in (*others, *methods))
    assert not any(found.allow(caller, path) for caller, path in product(CALLERS, (*others, methods[-1])))


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/v1/orders", "/livez", "/docs", "/nowhere", "/"])
def test_whatever_is_sent_to_the_gateway_comes_by_the_edge_or_from_an_operator(path: str, verb: str) -> None:
    found = intentions("gateway")
    assert {caller for caller in (*CALLERS, "operator") if found.allow(caller, path, verb)} == {"edge", "operator"}


def test_each_service_has_intentions_and_a_protocol() -> None:
    for folder in ("intentions", "config/service-defaults"):
        assert {file.stem for file in (ROOT / "consul" / folder).glob("*.hcl")} == {"gateway", *SERVICES}
