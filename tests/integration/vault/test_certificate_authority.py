"""OpenBao as the certificate authority of a running Consul: its own certificates, and those of services."""

from __future__ import annotations

import time

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hvac.exceptions import Forbidden, InvalidRequest

from stack.cluster.mesh.certificate_authority import ROLE, SECRET_ID
from stack.cluster.mesh.changes import mesh_changes
from stack.cluster.planned_changes import apply_all
from stack.waiting import poll

from .private_mesh import SERVICE, Mesh


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
