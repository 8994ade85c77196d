"""`mesh show`: the table follows the intentions of Consul, and certificates are those that instances present."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from support.mesh.authority import TRUST_DOMAIN

from chassis.mesh.names import spiffe_id
from shop.order.v1 import order_pb2
from stack.cluster import agents
from stack.config import Stack
from stack.console import StackError
from stack.mesh import overview

from .deployed_mesh import HOST, ORDERS, Cluster

PLACE, GET = f"/{ORDERS}/PlaceOrder", f"/{ORDERS}/GetOrder"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def intention(caller: str, precedence: int = 9, **rules: Any) -> dict[str, Any]:
    return {"SourceName": caller, "SourceType": "consul", "Precedence": precedence, **rules}


def permission(action: str, path: str) -> dict[str, Any]:
    return {"Action": action, "HTTP": {"PathExact": path}}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for server in made.servers:
        server.stop(None)
    for http in made.http_servers:
        http.shutdown()
        http.server_close()


def allowed(service: dict[str, Any]) -> dict[str, list[str]]:
    return {method["path"]: method["allowed"] for method in service["methods"]}


def text(found: dict[str, Any]) -> str:
    return "\n".join(overview.lines(found))


def test_each_method_of_the_contract_has_the_callers_that_the_intentions_allow(cluster: Cluster) -> None:
    cluster.instance()
    rules = [permission("allow", PLACE), permission("deny", GET), permission("allow", GET)]
    cluster.intentions["order-service"] = [
        intention("gateway", Permissions=rules),
        intention("operator", Action="allow"),
        intention("edge", Action="deny"),
    ]
    found = cluster.orders()
    methods = order_pb2.DESCRIPTOR.services_by_name["OrderService"].methods
    assert set(allowed(found)) == {f"/{ORDERS}/{method.name}" for method in methods} | {REFLECT}
    assert (found["callers"], found["problem"]) == (["edge", "gateway", "operator"], None)
    assert allowed(found)[PLACE] == ["gateway", "operator"]
    assert allowed(found)[GET] == allowed(found)[REFLECT] == ["operator"]


def test_the_intention_for_a_caller_goes_before_that_for_all_others(cluster: Cluster) -> None:
    cluster.instance()
    cluster.intentions["order-service"] = [intention("*", 8, Action="allow"), intention("edge", Action="deny")]
    assert allowed(cluster.orders())[PLACE] == ["*"]
    assert "edge  others\n" in text(cluster.read())


def test_without_intentions_nobody_may_call(cluster: Cluster) -> None:
    cluster.instance()
    assert allowed(cluster.orders())[PLACE] == []
    assert "order-service may be called by  " in (shown := text(cluster.read()))
    assert "nobody\n" in shown


def test_a_row_of_the_table_marks_what_is_allowed_below_its_caller(cluster: Cluster) -> None:
    cluster.instance()
    rules = [permission("allow", PLACE)]
    cluster.intentions["order-service"] = [intention("gateway", Permissions=rules), intention("op", Action="allow")]
    rows = text(cluster.read()).splitlines()
    heading, place, get = (
        next(row for row in rows if word in row) for word in ("order-service may be", PLACE[1:], GET[1:])
    )
    marks = {row: [row[heading.index(caller) :].split()[0] for caller in ("gateway", "op")] for row in (place, get)}
    assert marks == {place: ["yes", "yes"], get: ["-", "yes"]}


def test_without_a_healthy_instance_the_methods_are_those_that_intentions_name(cluster: Cluster) -> None:
    cluster.intentions["order-service"] = [intention("gateway", Permissions=[permission("allow", PLACE)])]
    assert allowed(cluster.orders()) == {PLACE: ["gateway"]}
    assert "has no healthy instance" in cluster.orders()["problem"]
    assert "only methods that intentions name are listed: it has no healthy instance" in text(cluster.read())


def test_an_instance_that_lists_no_methods_is_passed_over(cluster: Cluster) -> None:
    port = cluster.instance(reflects=False)
    assert cluster.orders()["problem"] == f"{HOST}:{port} does not list them: UNIMPLEMENTED"
    cluster.instance()
    assert cluster.orders()["problem"] is None


def test_a_service_that_serves_no_grpc_is_shown_if_it_has_intentions(cluster: Cluster) -> None:
    cluster.intentions = {"postgres": [intention("order-service", Action="allow")], "*": []}
    names = [each["name"] for each in cluster.read()["services"]]
    assert names == ["gateway", "order-service", "postgres", "user-service"]


def test_a_certificate_is_the_one_that_an_instance_presents(cluster: Cluster) -> None:
    leaf = cluster.authority.leaf("order-service", timedelta(minutes=43))
    port = cluster.instance(leaf)
    own, intermediate, *_ = x509.load_pem_x509_certificates(leaf.chain)
    found = cluster.read()
    (row,) = found["certificates"]
    assert (row["service"], row["address"], row["error"]) == ("order-service", f"{HOST}:{port}", None)
    assert row["names"] == ["order-service.mesh", spiffe_id("order-service", TRUST_DOMAIN)]
    assert int(row["serial"].replace(":", ""), 16) == own.serial_number
    assert row["issuer"] == intermediate.subject.rfc4514_string().removeprefix("CN=")
    assert row["minutes_left"] == pytest.approx(43, abs=0.5)
    assert row["serial"] in text(found)


@pytest.mark.parametrize(
    ("name", "minutes", "reason"), [("user-service", 60, "mismatch"), ("order-service", -1, "certificate has expired")]
)
def test_a_certificate_that_is_not_valid_is_an_error_of_its_instance(
    cluster: Cluster, name: str, minutes: int, reason: str
) -> None:
    bad = cluster.instance(cluster.authority.leaf(name, timedelta(minutes=minutes)))
    good = cluster.instance()
    found = cluster.read()
    errors = {row["address"]: row["error"] for row in found["certificates"]}
    assert reason in errors[f"{HOST}:{bad}"]
    assert errors[f"{HOST}:{good}"] is None
    assert f"! order-service at {HOST}:{bad} presents none that is valid: " in text(found)


@pytest.mark.parametrize("in_mesh", [True, False])
def test_the_requests_of_the_gateway_are_those_of_its_document(cluster: Cluster, in_mesh: bool) -> None:
    cluster.gateway(cluster.authority.leaf("gateway") if in_mesh else None)
    cluster.mesh["gateway"] = "on" if in_mesh else "off"
    only_reads = {"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET"]}}
    cluster.intentions["gateway"] = [intention("edge", Action="allow"), intention("op", Permissions=[only_reads])]
    (found,) = (each for each in cluster.read()["services"] if each["name"] == "gateway")
    assert (found["callers"], found["problem"]) == (["edge", "op"], None)
    assert allowed(found) == {"POST /v1/orders": ["edge"], "GET /v1/orders": ["edge", "op"], "GET /livez": ["edge"]}


def test_a_gateway_under_a_foreign_certificate_is_asked_for_nothing(cluster: Cluster) -> None:
    port = cluster.gateway(cluster.authority.leaf("user-service"))
    (found,) = (each for each in cluster.read()["services"] if each["name"] == "gateway")
    assert f"{HOST}:{port} does not list them: " in found["problem"]
    assert "mismatch" in found["problem"]


def test_the_certificate_of_the_edge_is_the_one_that_callers_see(cluster: Cluster) -> None:
    port = cluster.edge()
    (row,) = cluster.read()["certificates"]
    assert (row["service"], row["address"], row["error"]) == ("edge", f"{HOST}:{port}", None)


def test_the_roots_are_those_of_consul(cluster: Cluster) -> None:
    found = cluster.read()
    assert found["roots"] == [{"id": "3f:8f", "active": True, "ends": "2036-11-27T09:49:05Z"}]
    assert found["trust_domain"] == TRUST_DOMAIN


def test_outside_of_the_mesh_methods_are_read_by_plaintext_and_there_is_no_certificate(cluster: Cluster) -> None:
    cluster.plaintext_instance()
    cluster.mesh = dict.fromkeys(cluster.mesh, "off")
    cluster.is_sealed = True  # no certificate is needed
    found = cluster.read()
    assert (found["mesh"]["order-service"], found["certificates"]) == (False, [])
    assert cluster.orders()["problem"] is None
    assert "! the mesh is off for order-service: it speaks plaintext" in text(found)


def test_a_service_that_is_not_deployed_is_named(cluster: Cluster) -> None:
    del cluster.mesh["user-service"]
    found = cluster.read()
    assert found["mesh"]["user-service"] is None
    assert "! user-service is not deployed" in text(found)


@pytest.mark.parametrize(
    ("settings", "enforced"),
    [('{"mesh": {"enforce": true}}', True), ('{"mesh": {"enforce": false}}', False), ("{}", True), ("no JSON", True)],
)
def test_the_overview_says_if_intentions_are_not_enforced(cluster: Cluster, settings: str, enforced: bool) -> None:
    cluster.settings["order-service"] = settings
    assert cluster.orders()["enforced"] is enforced
    assert ("mesh.enforce is false" in text(cluster.read())) is not enforced


def test_an_operator_without_a_certificate_is_an_error_with_its_reason(cluster: Cluster) -> None:
    cluster.instance()
    cluster.is_sealed = True
    with pytest.raises(StackError) as raised:
        cluster.read()
    assert raised.value.what == "the operator gets no certificate of the mesh"
    assert "no handler for route mesh/sign/operator" in raised.value.why


def test_json_is_one_document_with_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.intentions["order-service"] = [intention("gateway", Action="allow")]
    monkeypatch.setattr(agents, "require_running", lambda _stack: None)
    monkeypatch.setattr(overview, "Clients", lambda _stack: cluster.clients)
    overview.show(Stack("overview", 9), as_json=True)
    assert json.loads(capsys.readouterr().out) == cluster.read()
    overview.show(Stack("overview", 9))
    assert capsys.readouterr().out.startswith(f"trust domain {TRUST_DOMAIN}\n")
