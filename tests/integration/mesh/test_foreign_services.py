"""Services that know nothing of the mesh join it behind sidecars: they and ours call each other as intentions allow."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.mesh import plain_caller, spiffe_https
from support.mesh.bridge_node import POOL, BridgeNode, bridge_node, why_not
from support.stack_under_test import RunningStack, eventually

from chassis.mesh.names import spiffe_id
from stack.build import tools
from stack.cluster import nomad
from stack.mesh.operator_leaf import issue

from .raw_calls import METHODS

# It waits for two rollouts of the User Service and for the start of sidecars.
pytestmark = pytest.mark.timeout(400)
JOB = Path(plain_caller.__file__).with_name("foreign.nomad.hcl")
CLIENT, SERVER, NATIVE = "foreign-client", "foreign-server", "user-service"
GET_USER, RESERVE = (f"/shop.user.v1.UserService/{name}" for name in ("GetUser", "ReserveCredit"))
UPSTREAM = "127.0.0.1:9001"
FORBIDDEN, OK = 403, 200


@pytest.mark.parametrize("service", METHODS)
def test_a_sidecar_finds_every_instance_of_a_native_service(running: RunningStack, service: str) -> None:
    endpoints = connect_endpoints(running, service)
    assert endpoints
    assert endpoints == {address_of(each) for each in running.instances(service)}


def connect_endpoints(running: RunningStack, service: str) -> set[tuple[str, int]]:
    """Where a caller of the mesh reaches a service: at its instances if it is native, else at their sidecars."""
    url = f"{running.url('consul')}/v1/health/connect/{service}?passing"
    headers = {"X-Consul-Token": running.clients.credentials.token("consul-management")}
    found = httpx.get(url, headers=headers, timeout=10).raise_for_status().json()
    return {address_of(each) for each in found}


def address_of(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["Service"]["Address"], entry["Service"]["Port"]


# --- behind sidecars


@pytest.fixture(scope="module")
def node(running: RunningStack) -> Iterator[BridgeNode]:
    if reason := why_not():
        pytest.skip(reason)
    with bridge_node(running.clients) as found:
        yield found


@dataclass(frozen=True)
class Foreign:
    """The foreign services on their node."""

    running: RunningStack
    node: BridgeNode

    def calls(self, *methods: str) -> dict[str, list[str]]:
        """Status and details of a call of each method of the User Service, by an ordinary client beside its sidecar."""
        (allocation,) = self.running.allocations("foreign", "client")
        command = [sys.executable, plain_caller.__file__, UPSTREAM, *methods]
        found: dict[str, list[str]] = json.loads(self.node.in_network(allocation["ID"], command))
        return found

    def get(self, path: str, caller: str = "order-service", server: str = SERVER) -> tuple[int, str]:
        """What the HTTP server answers to one of our services, which expects a server with the name `server`."""
        clients = self.running.clients
        domain = clients.consul.connect.certificates.list()["TrustDomain"]
        (address,) = connect_endpoints(self.running, SERVER)
        return spiffe_https.get(address, path, issue(clients, caller), spiffe_id(server, domain))


@pytest.fixture(scope="module")
def foreign(running: RunningStack, node: BridgeNode) -> Iterator[Foreign]:
    clients = running.clients
    with entry(running, {"Kind": "service-defaults", "Name": SERVER, "Protocol": "http"}), on_node(running, node):
        values = f'node_pool = "{POOL}"\nenvoy = "{tools.find("envoy")}"\n'
        payload = {"JobHCL": JOB.read_text(), "Variables": values, "Canonicalize": True}
        job = clients.nomad.jobs.request("parse", json=payload, method="post").json()
        clients.nomad.job.register_job("foreign", {"Job": job})
        try:
            eventually("the sidecars are healthy", lambda: sidecars(running) == {CLIENT, SERVER}, 90, every=0.5)
            yield Foreign(running, node)
        finally:
            nomad.stop(clients, "foreign")
            clients.nomad.job.deregister_job("foreign", purge=True)


def sidecars(running: RunningStack) -> set[str]:
    """The foreign services with a healthy sidecar."""
    return {name for name in (CLIENT, SERVER) if connect_endpoints(running, name)}


@contextmanager
def on_node(running: RunningStack, node: BridgeNode) -> Iterator[None]:
    """Moves the User Service to the node, because loopback cannot be reached from the network of an allocation."""
    jobs = running.clients.nomad.job
    home = jobs.get_job(NATIVE)
    for group in home["TaskGroups"]:
        group["Constraints"] = []  # those of Nomad itself, which adds them again

    def runs(*, there: bool) -> bool:
        nodes = {alloc["NodeName"] == node.name for alloc in running.allocations(NATIVE)}
        addresses = {address_of(each)[0] == node.address for each in running.instances(NATIVE)}
        return nodes == addresses == {there} and len(running.instances(NATIVE)) == home["TaskGroups"][0]["Count"]

    try:
        jobs.register_job(NATIVE, {"Job": home | {"NodePool": POOL}})
        eventually("the User Service runs on the other node", lambda: runs(there=True), 120, every=0.5)
        yield
    finally:
        jobs.register_job(NATIVE, {"Job": home})
        eventually("the User Service runs on its own node again", lambda: runs(there=False), 120, every=0.5)


@contextmanager
def entry(running: RunningStack, wanted: dict[str, Any]) -> Iterator[None]:
    """Sets a config entry of Consul for a while."""
    api, kind, name = running.clients.consul.config, wanted["Kind"], wanted["Name"]
    before = next((each for each in api.list(kind) or () if each["Name"] == name), None)
    api.put(wanted)
    try:
        yield
    finally:
        api.delete(kind, name) if before is None else api.put(before)


@contextmanager
def allowed(running: RunningStack, service: str, caller: str, path: str) -> Iterator[None]:
    """Lets a caller use one path of a service, besides what is allowed already."""
    kind = "service-intentions"
    found = next((each for each in running.clients.consul.config.list(kind) or () if each["Name"] == service), None)
    source = {"Name": caller, "Permissions": [{"Action": "allow", "HTTP": {"PathExact": path}}]}
    with entry(running, {"Kind": kind, "Name": service, "Sources": [*(found["Sources"] if found else ()), source]}):
        yield


def test_an_ordinary_client_behind_a_sidecar_reaches_the_method_that_an_intention_allows(foreign: Foreign) -> None:
    def statuses() -> tuple[str, str]:
        found = foreign.calls(GET_USER, RESERVE)
        return found[GET_USER][0], found[RESERVE][0]

    denied = ("PERMISSION_DENIED", "PERMISSION_DENIED")
    eventually("both are denied", lambda: statuses() == denied, 30, every=1)
    status, details = foreign.calls(GET_USER)[GET_USER]
    assert f"no intention of Consul allows {CLIENT} to call {GET_USER}" in details, status
    with allowed(foreign.running, NATIVE, CLIENT, GET_USER):
        eventually("one is allowed", lambda: statuses() == ("INTERNAL", "PERMISSION_DENIED"), 10, every=1)
    eventually("both are denied again", lambda: statuses() == denied, 10, every=1)


def test_an_http_server_behind_a_sidecar_answers_our_service_what_an_intention_allows(foreign: Foreign) -> None:
    def statuses(caller: str) -> tuple[int, int]:
        return foreign.get("/open", caller)[0], foreign.get("/closed", caller)[0]

    nothing = (FORBIDDEN, FORBIDDEN)
    eventually("both are denied", lambda: statuses("order-service") == nothing, 30, every=1)
    with allowed(foreign.running, SERVER, "order-service", "/open"):
        eventually("one is allowed", lambda: statuses("order-service") == (OK, FORBIDDEN), 30, every=1)
        assert foreign.get("/open") == (OK, "anybody")
        assert statuses("user-service") == nothing
    eventually("both are denied again", lambda: statuses("order-service") == nothing, 30, every=1)


def test_our_service_sends_nothing_to_a_sidecar_of_another_service(foreign: Foreign) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=SERVER):
        foreign.get("/open", server=CLIENT)
