"""`mesh show`: the table follows the intentions of Consul, and certificates are those that instances present."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from grpc_reflection.v1alpha import reflection
from hvac.exceptions import InvalidPath
from support.mesh.authority import TRUST_DOMAIN, Authority

from chassis.mesh.names import spiffe_id
from shop.order.v1 import order_pb2
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.mesh import overview
from stack.mesh.operator_leaf import Leaf
from stack.mesh.overview import Overview

ORDERS = order_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
PLACE, GET = f"/{ORDERS}/PlaceOrder", f"/{ORDERS}/GetOrder"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "grpc.health.v1.Health"
HOST = "127.0.0.1"


def intention(caller: str, precedence: int = 9, **rules: Any) -> dict[str, Any]:
    return {"SourceName": caller, "SourceType": "consul", "Precedence": precedence, **rules}


def permission(action: str, path: str) -> dict[str, Any]:
    return {"Action": action, "HTTP": {"PathExact": path}}


class Cluster:
    """Consul, Nomad and OpenBao as their clients show them, and instances of the Order Service."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.mesh: dict[str, str] = dict.fromkeys(("gateway", "order-service", "user-service"), "on")
        self.intentions: dict[str, list[dict[str, Any]]] = {}
        self.settings = {"order-service": '{"mesh": {"enforce": true}}'}
        self.ports: list[int] = []
        self.servers: list[grpc.Server] = []
        self.is_sealed = False

    def instance(self, leaf: Leaf | None = None, reflects: bool = True) -> int:
        """Starts an instance that presents a leaf, that of the Order Service by default; returns its port."""
        made = leaf or self.authority.leaf("order-service")
        credentials = grpc.ssl_server_credentials([(made.key, made.chain)], made.roots, require_client_auth=True)
        return self._start(reflects, lambda server: server.add_secure_port(f"{HOST}:0", credentials))

    def plaintext_instance(self) -> int:
        """Starts an instance outside of the mesh."""
        return self._start(True, lambda server: server.add_insecure_port(f"{HOST}:0"))

    def _start(self, reflects: bool, bind: Any) -> int:
        server = grpc.server(ThreadPoolExecutor(2))
        if reflects:
            reflection.enable_server_reflection((ORDERS, HEALTH, reflection.SERVICE_NAME), server)
        self.ports.append(bind(server))
        self.servers.append(server)
        server.start()
        return self.ports[-1]

    @property
    def clients(self) -> Clients:
        roots = [{"ID": "3f:8f", "Active": True, "NotAfter": "2036-11-27T09:49:05Z", "RootCert": self.authority.root}]
        consul = SimpleNamespace(
            config=SimpleNamespace(list=lambda _kind: [{"Name": name} for name in self.intentions]),
            connect=SimpleNamespace(
                certificates=SimpleNamespace(list=lambda: {"TrustDomain": TRUST_DOMAIN, "Roots": roots}),
                intentions=SimpleNamespace(list_match=lambda _by, name: {name: self.intentions.get(name)}),
            ),
            health=SimpleNamespace(service=self._healthy),
            kv=SimpleNamespace(get=lambda key: (1, self._value(key))),
        )
        pki = SimpleNamespace(sign_certificate=self._sign)
        vault = SimpleNamespace(secrets=SimpleNamespace(pki=pki))
        return cast(Clients, SimpleNamespace(consul=consul, vault=vault, nomad=SimpleNamespace(job=Jobs(self.mesh))))

    def _healthy(self, name: str, passing: bool) -> tuple[int, list[dict[str, Any]]]:
        assert passing
        ports = self.ports if name == "order-service" else []
        return 1, [{"Service": {"Address": HOST, "Port": port}} for port in ports]

    def _value(self, key: str) -> dict[str, str] | None:
        found = self.settings.get(key.removeprefix("config/"))
        return {"Value": found} if found is not None else None

    def _sign(self, _name: str, csr: str, _common_name: str, mount_point: str) -> dict[str, Any]:
        if self.is_sealed:
            raise InvalidPath(f"no handler for route {mount_point}/sign/operator")
        return {"data": self.authority.signed(csr)}

    def read(self) -> dict[str, Any]:
        return Overview(self.clients).read()

    def orders(self) -> dict[str, Any]:
        """What the overview says of the Order Service."""
        (found,) = (each for each in self.read()["services"] if each["name"] == "order-service")
        return cast(dict[str, Any], found)


class Jobs(dict[str, str]):
    """The jobs of Nomad, by name, with the mesh on or off."""

    def get_job(self, name: str) -> dict[str, Any]:
        return {"TaskGroups": [{"Tasks": [{"Env": {"MESH": self[name]}}]}]}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for server in made.servers:
        server.stop(None)


def allowed(service: dict[str, Any]) -> dict[str, list[str]]:
    return {method["path"]: method["allowed"] for method in service["methods"]}


def text(found: dict[str, Any]) -> str:
    return "\n".join(overview.lines({"recent": None} | found))


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
    heading, place, get = (next(row for row in rows if word in row) for word in ("may be called", PLACE[1:], GET[1:]))
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
    assert names == ["order-service", "postgres", "user-service"]


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
    assert "! the mesh is off for order-service: its gRPC is plaintext" in text(found)


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
    recent = {"minutes": 5, "calls": [], "failed_handshakes": []}
    monkeypatch.setattr(overview.recent_calls, "read", lambda _stack: recent)
    overview.show(Stack("overview", 9), as_json=True)
    assert json.loads(capsys.readouterr().out) == cluster.read() | {"recent": recent}
    overview.show(Stack("overview", 9))
    assert capsys.readouterr().out.startswith(f"trust domain {TRUST_DOMAIN}\n")
    cluster.mesh = dict.fromkeys(cluster.mesh, "off")
    overview.show(Stack("overview", 9), as_json=True)
    assert json.loads(capsys.readouterr().out)["recent"] is None
