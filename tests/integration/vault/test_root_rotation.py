"""`rotate mesh-ca` between a real Consul and a real OpenBao, also one that is interrupted between two steps.

Instances are missing here: tests/chaos has them, with calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from cryptography import x509

from stack.cluster import vault
from stack.cluster.mesh import certificate_authority
from stack.cluster.mesh.certificate_authority import ROOT_MOUNTS, CertificateAuthority
from stack.cluster.mesh.issuers import Issuers
from stack.console import StackError
from stack.mesh.ca_rotation import Instances, Rotation
from stack.waiting import poll

from .private_mesh import SERVICE, Mesh

CROSS_SIGNING = "/v1/sys/policies/acl/consul-ca"


class NoInstance:
    """A mesh without instances, so none is outside of it."""

    def outside(self, issuers: Sequence[x509.Certificate]) -> list[str]:
        assert issuers
        return []

    def count(self) -> int:
        return 0


@pytest.fixture(scope="module")
def mesh(unchanged: Mesh) -> Mesh:
    unchanged.prepare()
    unchanged.deploy()
    return unchanged


def authority(mesh: Mesh) -> CertificateAuthority:
    return CertificateAuthority(mesh.stack, mesh.clients)


def rotate(mesh: Mesh) -> None:
    Rotation(authority(mesh), Issuers(mesh.clients), cast(Instances, NoInstance())).run()


def begin(mesh: Mesh) -> None:
    """A rotation that is killed while it waits for the instances."""

    class Killed(NoInstance):
        def outside(self, issuers: Sequence[x509.Certificate]) -> list[str]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rotation(authority(mesh), Issuers(mesh.clients), cast(Instances, Killed())).run()


def signing_below(mesh: Mesh) -> str:
    """The root (PEM) below which OpenBao signs for a service."""
    signed = mesh.sign([f"{SERVICE}.mesh"], [mesh.uri(SERVICE)])
    leaf, issuer = (x509.load_pem_x509_certificate(signed[key].encode()) for key in ("certificate", "issuing_ca"))
    leaf.verify_directly_issued_by(issuer)
    roots = {pem: x509.load_pem_x509_certificate(pem.encode()) for pem in all_roots(mesh)}
    (found,) = [pem for pem, root in roots.items() if root.subject == issuer.issuer]
    issuer.verify_directly_issued_by(roots[found])
    return found


def all_roots(mesh: Mesh) -> set[str]:
    roots = (authority(mesh).root(mount) for mount in ROOT_MOUNTS)
    return {root for root in roots if root}


@pytest.fixture
def consul_may_not_cross_sign(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Consul that fails after its first steps: OpenBao signs with a new intermediate, which is not announced."""
    monkeypatch.setattr(certificate_authority, "_SECONDS", 0)
    policy = (vault.FILES / "policies" / "consul-ca.hcl").read_text()
    mesh.bao.call("PUT", CROSS_SIGNING, {"policy": policy.replace('["sudo", "update"]', '["deny"]')})
    yield
    mesh.bao.call("PUT", CROSS_SIGNING, {"policy": policy})


def test_a_new_root_signs_both_are_trusted_and_nothing_differs_from_the_files(mesh: Mesh) -> None:
    former, domain = mesh.active_root(), mesh.uri("a")
    begin(mesh)
    assert mesh.active_root()["ID"] != former["ID"]
    assert len(all_roots(mesh)) == 2
    trusted = mesh.agent.call("GET", "/v1/connect/ca/roots")["Roots"]
    assert former["ID"] in {root["ID"] for root in trusted}
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    assert mesh.issued().issuer == x509.load_pem_x509_certificate(issuers(mesh)[-1].encode()).subject
    assert (mesh.planned(), mesh.uri("a")) == ([], domain)


def issuers(mesh: Mesh) -> list[str]:
    found: list[str] = mesh.active_root()["IntermediateCerts"]
    return found


def test_another_run_makes_no_further_root_and_deletes_the_keys_of_the_old_one(mesh: Mesh) -> None:
    active, trusted = mesh.active_root()["ID"], mesh.agent.call("GET", "/v1/connect/ca/roots")["Roots"]
    rotate(mesh)
    assert mesh.active_root()["ID"] == active
    assert mesh.agent.call("GET", "/v1/connect/ca/roots")["Roots"] == trusted
    assert all_roots(mesh) == {mesh.active_root()["RootCert"].strip()}
    kept = Issuers(mesh.clients)._all().values()
    assert {found["certificate"] for found in kept} <= {pem.strip() for pem in (*issuers(mesh), *all_roots(mesh))}
    assert len(mesh.vault.list("mesh/keys")["data"]["keys"]) == 1
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    assert mesh.issued()
    assert mesh.planned() == []


def test_a_second_rotation_uses_the_first_mount_again(mesh: Mesh) -> None:
    before = mesh.active_root()["ID"]
    rotate(mesh)
    assert (authority(mesh).root_mount(), mesh.active_root()["ID"] == before) == (ROOT_MOUNTS[0], False)
    assert all_roots(mesh) == {mesh.active_root()["RootCert"].strip()}
    assert mesh.planned() == []


@pytest.mark.usefixtures("consul_may_not_cross_sign")
def test_if_consul_rejects_the_new_root_the_old_authority_signs_again(mesh: Mesh) -> None:
    with pytest.raises(StackError, match="permission denied"):
        rotate(mesh)
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    assert mesh.planned() == []


def test_a_rotation_that_consul_has_not_announced_is_undone_by_a_deploy_and_begun_again_by_another_run(
    mesh: Mesh, request: pytest.FixtureRequest
) -> None:
    """As if the command had been killed while Consul worked, and Consul too."""
    before = mesh.active_root()["ID"]
    request.getfixturevalue("consul_may_not_cross_sign")
    with pytest.raises(StackError):
        authority(mesh).use_root(ROOT_MOUNTS[1])
    assert signing_below(mesh) != mesh.active_root()["RootCert"].strip()
    (change,) = mesh.planned()
    assert change.where == "vault mesh/config/issuers"
    change.apply()
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    policy = (vault.FILES / "policies" / "consul-ca.hcl").read_text()
    mesh.bao.call("PUT", CROSS_SIGNING, {"policy": policy})
    rotate(mesh)
    assert mesh.active_root()["ID"] != before
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    assert mesh.planned() == []


def test_a_consul_that_is_started_again_half_way_goes_on_with_the_new_root(mesh: Mesh) -> None:
    before = mesh.active_root()["ID"]
    begin(mesh)
    active = mesh.active_root()["ID"]
    assert active != before
    intermediate = issuers(mesh)[-1]
    mesh.agent.kill()
    mesh.agent.start()
    assert poll(lambda: issuers(mesh)[-1] != intermediate, 20), "Consul makes a new intermediate at each of its starts"
    assert len(Issuers(mesh.clients).below(mesh.active_root()["RootCert"])) == 2
    rotate(mesh)
    assert mesh.active_root()["ID"] == active
    assert all_roots(mesh) == {mesh.active_root()["RootCert"].strip()}
    assert mesh.planned() == []


def test_a_rotation_goes_on_although_openbao_signs_below_the_old_root_again(mesh: Mesh) -> None:
    (former,) = [each for each, found in Issuers(mesh.clients)._all().items() if found["is_default"]]
    begin(mesh)
    mesh.vault.write_data("mesh/config/issuers", data={"default": former})
    assert signing_below(mesh) != mesh.active_root()["RootCert"].strip()
    rotate(mesh)
    assert signing_below(mesh) == mesh.active_root()["RootCert"].strip()
    assert all_roots(mesh) == {mesh.active_root()["RootCert"].strip()}
    assert len(mesh.vault.list("mesh/keys")["data"]["keys"]) == 1
    assert mesh.planned() == []
