"""What a program of the node can try without the right certificate on a running stack, and how it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache

import grpc
import hvac
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from hvac.exceptions import Forbidden, InvalidRequest
from support.mesh.bad_leaves import ended_leaf, foreign_leaf, trust_domain
from support.mesh.channels import caller_credentials, first_address, health_channel, mesh_channel, named
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from chassis.mesh.certificate_request import build
from chassis.mesh.names import server_name, spiffe_id
from stack.cluster.clients import Clients
from stack.mesh import recent_calls
from stack.mesh.operator_leaf import Leaf, issue

from ..raw_calls import METHODS, REACHED, code_of

DENIED, UNREACHABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE
JOBS = ("gateway", "order-service", "user-service")


def secure(running: RunningStack, service: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    return grpc.secure_channel(first_address(running.clients, service), credentials, named(service))


@cache
def ended(clients: Clients) -> Leaf:
    """Made once, because its end takes seconds."""
    return ended_leaf(clients, "gateway")


# How each attacker connects to a service, and the reason with which its handshake is counted and logged.
ATTACKS = {
    "plaintext": lambda running, service: grpc.insecure_channel(first_address(running.clients, service)),
    "no certificate": lambda running, service: secure(
        running, service, grpc.ssl_channel_credentials(issue(running.clients).roots)
    ),
    "a certificate of a foreign authority": lambda running, service: secure(
        running, service, caller_credentials(foreign_leaf(running.clients, "gateway"))
    ),
    "a certificate that has ended": lambda running, service: secure(
        running, service, caller_credentials(ended(running.clients))
    ),
}


@pytest.mark.parametrize("service", METHODS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_valid_certificate_no_call_is_answered(running: RunningStack, service: str, attack: str) -> None:
    with ATTACKS[attack](running, service) as channel:
        assert {code_of(channel, path) for path in METHODS[service]} == {UNREACHABLE}


REASONS = {
    "plaintext": "wrong version number",
    "no certificate": "peer did not return a certificate",
    "a certificate of a foreign authority": "unable to get local issuer certificate",
    "a certificate that has ended": "certificate has expired",
}


def test_each_refused_handshake_is_counted_and_logged_with_its_reason(running: RunningStack) -> None:
    began = time.time()

    def logged() -> bool:
        """Attacks again, because each reason is logged once in ten seconds."""
        for attack in ATTACKS.values():
            with attack(running, "user-service") as channel:
                code_of(channel, METHODS["user-service"][0])
        lines = (running.logged("user-service", began, "a TLS handshake failed", why) for why in REASONS.values())
        return all(any(instances) for instances in lines)

    def counted() -> bool:
        found = recent_calls.read(running.stack) or pytest.skip("this stack has no telemetry")
        rows = {row["reason"] for row in found["failed_handshakes"] if row["service"] == "user-service"}
        return set(REASONS.values()) <= rows

    assert set(REASONS) == set(ATTACKS)
    eventually("they are logged", logged, 40, every=2)
    eventually("they are counted", counted, 60, every=1)


@pytest.mark.parametrize("service", METHODS)
def test_the_same_calls_with_a_valid_certificate_are_answered(running: RunningStack, service: str) -> None:
    """The control: the address is right, and the instance serves."""
    with mesh_channel(running.clients, service) as channel:
        assert {code_of(channel, path) for path in METHODS[service]} == {REACHED}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_call_past_the_gateway_with_the_token_of_a_user_is_not_answered(
    running: RunningStack, user: ApiUser, attack: str
) -> None:
    with ATTACKS[attack](running, "user-service") as channel:
        path, token = "/shop.user.v1.UserService/GetUser", ("authorization", f"Bearer {user.token}")
        assert code_of(channel, path, [token]) is UNREACHABLE


def test_metadata_that_names_another_caller_changes_nothing(running: RunningStack) -> None:
    identity = spiffe_id("gateway", trust_domain(running.clients))
    forged = [
        ("x-forwarded-client-cert", f"URI={identity}"),
        ("peer_spiffe_id", identity),
        ("x-spiffe-id", identity),
        ("x-consul-caller", "gateway"),
        ("mesh.caller", "gateway"),
    ]
    with mesh_channel(running.clients, "order-service", as_="user-service") as channel:
        assert code_of(channel, "/shop.order.v1.OrderService/GetOrder", forged) is DENIED


@pytest.mark.parametrize(("service", "other"), [("user-service", "order-service"), ("order-service", "user-service")])
def test_an_instance_of_another_service_gets_no_call(running: RunningStack, service: str, other: str) -> None:
    address = first_address(running.clients, other)
    with mesh_channel(running.clients, service, address=address) as channel:
        assert code_of(channel, METHODS[service][0]) is UNREACHABLE


@pytest.mark.parametrize("service", METHODS)
def test_the_port_of_the_checks_tells_anybody_the_health_and_serves_nothing_else(
    running: RunningStack, service: str
) -> None:
    for instance in running.instances(service):
        with health_channel(running.clients, instance["Service"]["ID"]) as channel:
            status = HealthStub(channel).Check(HealthCheckRequest(), timeout=5).status
            assert status == HealthCheckResponse.SERVING
            found = {code_of(channel, path) for path in METHODS[service]}
        assert found == {grpc.StatusCode.UNIMPLEMENTED}


# --- certificates in the name of another


@pytest.fixture(params=JOBS)
def workload(running: RunningStack, request: pytest.FixtureRequest) -> Iterator[tuple[str, hvac.Client]]:
    """A job, and a client of Vault with the rights of its workload identity."""
    job = str(request.param)
    folder = running.folder(running.allocations(job)[0], job)
    client = hvac.Client(url=running.url("vault"))
    client.auth.jwt.jwt_login(job, (folder / "secrets" / "nomad_vault.jwt").read_text(), path="jwt-nomad")
    yield job, client
    client.auth.token.revoke_self()


def signed(running: RunningStack, client: hvac.Client, role: str, dns: str, uri: str = "") -> None:
    """Asks for a certificate with a DNS name and the URI of a service, of the same one if it is empty."""
    _, request = build(server_name(dns), spiffe_id(uri or dns, trust_domain(running.clients)))
    client.secrets.pki.sign_certificate(role, request, "", mount_point="mesh")


def test_a_service_gets_a_certificate_of_its_own_name(running: RunningStack, workload: tuple[str, hvac.Client]) -> None:
    job, client = workload
    signed(running, client, job, job)


def test_a_service_gets_no_certificate_by_the_role_of_another(
    running: RunningStack, workload: tuple[str, hvac.Client]
) -> None:
    job, client = workload
    for role in {*JOBS, "operator"} - {job}:
        with pytest.raises(Forbidden):
            signed(running, client, role, role)
        with pytest.raises(Forbidden):
            signed(running, client, role, job)


def test_a_service_gets_no_certificate_with_a_name_of_another(
    running: RunningStack, workload: tuple[str, hvac.Client]
) -> None:
    job, client = workload
    for other in ({*JOBS, "operator"} - {job}) | {f"{job}.{job}", "*"}:
        for dns, uri in ((other, other), (job, other), (other, job)):
            with pytest.raises(InvalidRequest):
                signed(running, client, job, dns, uri)


@pytest.mark.parametrize(
    "path", ["mesh/issue/operator", "mesh/sign-verbatim/operator", "mesh-root/root/sign-intermediate"]
)
def test_a_service_may_use_no_other_way_to_a_certificate(
    running: RunningStack, workload: tuple[str, hvac.Client], path: str
) -> None:
    job, client = workload
    _, request = build(server_name(job), spiffe_id(job, trust_domain(running.clients)))
    for asked in (path, path.replace("operator", job)):
        with pytest.raises(Forbidden):
            client.write_data(asked, data={"csr": request})
