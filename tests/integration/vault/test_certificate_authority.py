"""OpenBao as the certificate authority of a running Consul: its own certificates, and those of services."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import hvac
import pytest
from consul import Consul
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hvac.exceptions import Forbidden, InvalidRequest

from stack.build import tools
from stack.cluster import vault
from stack.cluster.clients import Clients
from stack.cluster.credentials import Credentials
from stack.cluster.mesh.certificate_authority import ROLE, SECRET_ID
from stack.cluster.mesh.changes import mesh_changes
from stack.cluster.planned_changes import Change, apply_all
from stack.config import Stack
from stack.waiting import poll

from ..chassis.servers import ROOT_TOKEN, Server, consul

SERVICE = "user-service"


class Mesh:
    """A Consul and an OpenBao, whose mounts, policies and login of Consul are as in their files."""

    def __init__(self, bao: Server, agent: Server, folder: Path) -> None:
        self.bao, self.agent = bao, agent
        address = urlsplit(agent.url)
        parts = SimpleNamespace(
            state=folder,
            secrets=folder / "secrets",
            url=lambda name: {"vault": bao.url}.get(name, ""),
            port=lambda _: 1,
        )
        self.stack = cast(Stack, parts)
        self.vault = hvac.Client(bao.url, token=ROOT_TOKEN)
        self.consul = Consul(address.hostname, address.port, token=ROOT_TOKEN)
        self.credentials = Credentials(self.stack)
        clients = SimpleNamespace(vault=self.vault, consul=self.consul, credentials=self.credentials)
        self.clients = cast(Clients, clients)

    def prepare(self) -> None:
        (self.stack.state / "vault").mkdir()
        files, api = vault.FILES, vault.Vault(self.stack, self.clients)
        for name in (ROLE, SERVICE):
            apply_all(api._policy(files / "policies" / f"{name}.hcl"))
        for name in ("mesh-root", "mesh"):
            apply_all(api._mount(files / "engines" / f"{name}.json", "sys/mounts"))
        apply_all(api._mount(files / "auth" / "approle.json", "sys/auth"))
        apply_all(api._below(files / "auth", files / "auth" / "approle"))

    def planned(self) -> list[Change]:
        return list(mesh_changes(self.stack, self.clients))

    def active_root(self) -> dict[str, Any]:
        found: dict[str, Any] = self.agent.call("GET", "/v1/connect/ca/roots")
        return next(root for root in found["Roots"] if root["Active"])

    def issued(self) -> x509.Certificate:
        """A certificate that Consul itself issues, which needs its login to OpenBao."""
        name = f"service-{time.monotonic_ns()}"
        leaf = self.agent.call("GET", f"/v1/agent/connect/ca/leaf/{name}")
        return x509.load_pem_x509_certificate(leaf["CertPEM"].encode())

    def workload(self) -> hvac.Client:
        """A client with the policy of a service."""
        token = self.vault.auth.token.create(policies=[SERVICE])["auth"]["client_token"]
        return hvac.Client(self.bao.url, token=token)

    def uri(self, name: str) -> str:
        domain = self.agent.call("GET", "/v1/connect/ca/roots")["TrustDomain"]
        return f"spiffe://{domain}/ns/default/dc/dc1/svc/{name}"

    def sign(self, names: list[str], uris: list[str], role: str = SERVICE, **more: Any) -> dict[str, Any]:
        """Has a request with some names signed, as a workload does."""
        others: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names), *others]), critical=True)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        pem = request.public_bytes(serialization.Encoding.PEM).decode()
        signed: dict[str, Any] = self.workload().write_data(f"mesh/sign/{role}", data={"csr": pem} | more)
        return cast(dict[str, Any], signed["data"])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if tools.find("consul") is None:
        pytest.skip("needs Consul (./justw deploy builds it)")
    with consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(scope="module")
def unchanged(bao: Server, agent: Server, tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """A running Consul with its built-in authority, and an OpenBao with nothing of the mesh."""
    return Mesh(bao, agent, tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def mesh(unchanged: Mesh) -> Mesh:
    """The mesh as after a deploy; the switch is checked here, because it happens once."""
    former, domain = unchanged.active_root(), unchanged.uri("a")
    planned = unchanged.planned()
    assert [change.where for change in planned][:2] == ["vault login of consul-ca", "consul certificate authority"]
    unchanged.prepare()
    assert apply_all(mesh_changes(unchanged.stack, unchanged.clients)) == len(planned)
    active = unchanged.active_root()
    assert (active["ID"] == former["ID"], unchanged.uri("a")) == (False, domain)
    crossed = [x509.load_pem_x509_certificate(pem.encode()) for pem in active["IntermediateCerts"]]
    issuer = x509.load_pem_x509_certificate(former["RootCert"].encode()).subject
    assert [certificate.issuer for certificate in crossed].count(issuer) == 1, "the former root signs the new one"
    return unchanged


def test_a_plan_before_the_first_deploy_changes_nothing(unchanged: Mesh) -> None:
    before = unchanged.agent.call("GET", "/v1/connect/ca/configuration")
    unchanged.planned()
    assert unchanged.agent.call("GET", "/v1/connect/ca/configuration") == before


def test_a_second_deploy_changes_nothing(mesh: Mesh) -> None:
    assert [change.where for change in mesh.planned()] == []


def test_the_root_lasts_for_years_and_the_intermediate_for_one(mesh: Mesh) -> None:
    root = x509.load_pem_x509_certificate(mesh.active_root()["RootCert"].encode())
    issued_by = x509.load_pem_x509_certificate(mesh.active_root()["IntermediateCerts"][-1].encode())
    lasting = [certificate.not_valid_after_utc - certificate.not_valid_before_utc for certificate in (root, issued_by)]
    assert [round(duration.days / 365) for duration in lasting] == [10, 1]
    assert issued_by.issuer == root.subject


def test_consul_issues_certificates_from_openbao(mesh: Mesh) -> None:
    issued_by = x509.load_pem_x509_certificate(mesh.active_root()["IntermediateCerts"][-1].encode())
    assert mesh.issued().issuer == issued_by.subject


def test_a_workload_gets_a_certificate_with_its_names(mesh: Mesh) -> None:
    signed = mesh.sign([f"{SERVICE}.mesh"], [mesh.uri(SERVICE)])
    leaf, issuer = (x509.load_pem_x509_certificate(signed[key].encode()) for key in ("certificate", "issuing_ca"))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{SERVICE}.mesh"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [mesh.uri(SERVICE)]
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() <= 3600 + 60
    leaf.verify_directly_issued_by(issuer)
    root = x509.load_pem_x509_certificate(mesh.active_root()["RootCert"].encode())
    issuer.verify_directly_issued_by(root)
    assert signed["ca_chain"][0].strip() == signed["issuing_ca"].strip()


def test_a_workload_may_ask_for_a_shorter_life_and_not_for_a_longer_one(mesh: Mesh) -> None:
    for asked, given in (("60s", 60), ("24h", 3600)):
        ends = mesh.sign([f"{SERVICE}.mesh"], [mesh.uri(SERVICE)], ttl=asked)["expiration"]
        assert abs(ends - time.time() - given) < 20


@pytest.mark.parametrize("name", ["not_after", "not_before_duration", "alt_names", "uri_sans", "format"])
def test_a_workload_may_send_nothing_but_its_request_and_its_life(mesh: Mesh, name: str) -> None:
    """OpenBao gives `not_after` precedence over the longest life of the role."""
    with pytest.raises(Forbidden):
        mesh.sign([f"{SERVICE}.mesh"], [mesh.uri(SERVICE)], **{name: "2026-12-31T00:00:00Z"})


@pytest.mark.parametrize(
    ("names", "service"),
    [
        (["order-service.mesh"], SERVICE),
        ([f"{SERVICE}.mesh", "order-service.mesh"], SERVICE),
        ([f"a.{SERVICE}.mesh"], SERVICE),
        (["*.mesh"], SERVICE),
        (["localhost"], SERVICE),
        ([f"{SERVICE}.mesh"], "order-service"),
        ([f"{SERVICE}.mesh"], f"{SERVICE}/../operator"),
    ],
)
def test_a_workload_gets_no_certificate_with_another_name(mesh: Mesh, names: list[str], service: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not (allowed by|valid for) this role"):
        mesh.sign(names, [mesh.uri(service)])


@pytest.mark.parametrize("role", ["order-service", "operator", "leaf-cert"])
def test_a_workload_cannot_use_the_role_of_another(mesh: Mesh, role: str) -> None:
    with pytest.raises(Forbidden):
        mesh.sign([f"{role}.mesh"], [mesh.uri(role)], role)


def test_a_login_that_openbao_does_not_know_is_replaced_and_consul_uses_the_new_one(mesh: Mesh) -> None:
    mesh.credentials.store(SECRET_ID, "00000000-0000-0000-0000-000000000000")
    assert [change.where for change in mesh.planned()] == ["vault login of consul-ca"]
    assert apply_all(mesh_changes(mesh.stack, mesh.clients)) == 1
    assert len(mesh.vault.auth.approle.list_secret_id_accessors(ROLE)["data"]["keys"]) == 1
    mesh.agent.kill()
    mesh.agent.start()

    def issues() -> bool:
        try:
            return mesh.issued() is not None
        except httpx.HTTPError:
            return False

    assert poll(issues, 30), "Consul issues no certificates"
    assert mesh.planned() == []


def test_a_configuration_changed_by_hand_is_reverted(mesh: Mesh) -> None:
    found = mesh.agent.call("GET", "/v1/connect/ca/configuration")
    longer = {"Provider": "vault", "Config": found["Config"] | {"LeafCertTTL": "72h"}}
    mesh.agent.call("PUT", "/v1/connect/ca/configuration", longer)
    (change,) = mesh.planned()
    assert "72h" in change.diff()
    change.apply()
    assert mesh.planned() == []
