"""The certificate of the edge on a running stack: https for callers, by names that OpenBao gives to nobody else."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx
import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidRequest
from support.mesh.bad_leaves import trust_domain
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from chassis.mesh.names import spiffe_id
from stack.mesh.dial import instances

ISSUE = "mesh/issue/edge"


@pytest.fixture
def roots(running: RunningStack) -> str:
    """As a caller reads them, who has no token of Consul."""
    return httpx.get(running.url("consul") + "/v1/connect/ca/roots?pem=true").raise_for_status().text


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_http_version_is_that_of_the_caller(
    running: RunningStack, roots: str, name: str, offered: list[str], chosen: str | None
) -> None:
    context = ssl.create_default_context(cadata=roots)
    if offered:
        context.set_alpn_protocols(offered)
    address = ("127.0.0.1", running.stack.port("gateway_https"))
    with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname=name) as encrypted:
        assert encrypted.selected_alpn_protocol() == chosen


def test_both_ports_give_the_same_answers(running: RunningStack, roots: str) -> None:
    with httpx.Client(verify=ssl.create_default_context(cadata=roots)) as http:
        for path in ("/livez", "/docs", "/openapi.json", "/v1/users/me", "/nowhere"):
            plain, encrypted = (http.get(running.url(port) + path) for port in ("gateway", "gateway_https"))
            assert (plain.status_code, plain.headers["content-type"]) == (
                encrypted.status_code,
                encrypted.headers["content-type"],
            )
            assert (plain.json().keys() == encrypted.json().keys()) if "json" in plain.headers["content-type"] else True


def test_http2_reaches_the_gateway(running: RunningStack, roots: str) -> None:
    """By a client of gRPC, which speaks nothing else. The edge itself has no answer of 404."""
    address = f"127.0.0.1:{running.stack.port('gateway_https')}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(roots.encode())) as channel:
        method: Any = channel.unary_unary("/nowhere")
        with pytest.raises(grpc.RpcError) as raised:
            method(b"", timeout=10)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "404" in error.details()


def test_whoever_does_not_know_the_roots_does_not_accept_it(running: RunningStack) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(running.url("gateway_https") + "/livez")


def test_no_certificate_is_asked_of_a_caller_of_the_edge(running: RunningStack, roots: str) -> None:
    context = ssl.create_default_context(cadata=roots)
    assert httpx.get(running.url("gateway_https") + "/livez", verify=context).status_code == httpx.codes.OK


def test_an_instance_without_the_name_of_a_gateway_gets_no_request(running: RunningStack, user: ApiUser) -> None:
    """Whoever registers at Consul under this name still needs the certificate."""
    (alloc,) = running.allocations("edge")
    folder, (host, port) = running.folder(alloc, "edge"), instances(running.clients, "user-service")[0]
    service = running.clients.consul.agent.service
    before = refused(folder)
    service.register("gateway", service_id="impostor", address=host, port=port)
    try:
        listed = folder / "local" / "instances" / "gateway.json"
        eventually("the edge has it in its list", lambda: f'"port_value": {port}' in listed.read_text(), 10)
        assert {user.get("/v1/users/me").status_code for _ in range(50)} == {httpx.codes.OK}
        eventually("the edge has refused it", lambda: refused(folder) > before, 10)
    finally:
        service.deregister("impostor")


def refused(folder: Path) -> int:
    """The connections that Envoy has closed because of the name in the certificate."""
    socket = httpx.HTTPTransport(uds=str(folder / "secrets" / "admin.sock"))
    with httpx.Client(transport=socket, base_url="http://admin") as admin:
        stats = admin.get("/stats?filter=^cluster.calls.ssl.fail_verify_san$").raise_for_status().text
    return int(stats.partition(": ")[2])


@pytest.fixture
def edge(running: RunningStack) -> hvac.Client:
    """A client of Vault with the token that Nomad has for the templates of the edge."""
    (alloc,) = running.allocations("edge")
    token = (running.folder(alloc, "edge") / "private" / "vault_token").read_text()
    return hvac.Client(url=running.url("vault"), token=token)


def wanted(running: RunningStack, **changes: str) -> dict[str, str]:
    """What the template asks for, with changes."""
    uri = spiffe_id("edge", trust_domain(running.clients))
    return {"common_name": "edge.mesh", "alt_names": "localhost", "ip_sans": "127.0.0.1", "uri_sans": uri} | changes


def test_the_edge_gets_its_certificate_for_an_hour(running: RunningStack, edge: hvac.Client) -> None:
    found = edge.write_data(ISSUE, data=wanted(running))["data"]
    assert "PRIVATE KEY" in found["private_key"]


@pytest.mark.parametrize(
    "changes",
    [
        {"common_name": "gateway.mesh"},
        {"alt_names": "gateway.mesh"},
        {"alt_names": "localhost,gateway.mesh"},
        {"ip_sans": "127.0.0.2"},
        {"ip_sans": "127.0.0.1,10.0.0.1"},
        {"uri_sans": "spiffe://{domain}/ns/default/dc/dc1/svc/gateway"},
        {"ttl": "24h"},
        {"not_after": "2099-01-01T00:00:00Z"},
        {"other_sans": "1.3.6.1.4.1.311.20.2.3;utf8:admin"},
    ],
)
def test_the_edge_gets_no_certificate_with_another_name_or_a_longer_life(
    running: RunningStack, edge: hvac.Client, changes: dict[str, str]
) -> None:
    domain = trust_domain(running.clients)
    asked = wanted(running, **{name: value.format(domain=domain) for name, value in changes.items()})
    with pytest.raises((Forbidden, InvalidRequest)):
        edge.write_data(ISSUE, data=asked)


@pytest.mark.parametrize(
    "path",
    ["mesh/issue/gateway", "mesh/sign/edge", "mesh/sign/gateway", "mesh/sign-verbatim/edge", "mesh/issue/operator"],
)
def test_the_edge_may_use_no_other_way_to_a_certificate(running: RunningStack, edge: hvac.Client, path: str) -> None:
    with pytest.raises(Forbidden):
        edge.write_data(path, data=wanted(running))


def test_a_service_gets_no_certificate_of_the_edge(running: RunningStack) -> None:
    folder = running.folder(running.allocations("gateway")[0], "gateway")
    client = hvac.Client(url=running.url("vault"))
    client.auth.jwt.jwt_login("gateway", (folder / "secrets" / "nomad_vault.jwt").read_text(), path="jwt-nomad")
    with pytest.raises(Forbidden):
        client.write_data(ISSUE, data=wanted(running))
    client.auth.token.revoke_self()


def test_the_key_of_the_edge_is_for_the_user_of_the_job_alone(running: RunningStack) -> None:
    (alloc,) = running.allocations("edge")
    file = running.folder(alloc, "edge") / "secrets" / "mesh" / "leaf.json"
    assert "PRIVATE KEY" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
