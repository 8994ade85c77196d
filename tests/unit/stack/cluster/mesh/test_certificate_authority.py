"""Consul's certificate authority: its login to OpenBao and its configuration follow their files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from consul import ConsulException
from hvac.exceptions import InvalidPath

from stack.cluster.clients import Clients
from stack.cluster.credentials import Credentials
from stack.cluster.mesh import certificate_authority
from stack.cluster.mesh.certificate_authority import ROLE_ID, SECRET_ID, CertificateAuthority
from stack.cluster.planned_changes import Change, apply_all
from stack.config import Stack
from stack.console import StackError

LOGIN, AUTHORITY = "vault login of consul-ca", "consul certificate authority"
BUILT_IN = {"Provider": "consul", "Config": {"LeafCertTTL": "72h", "PrivateKey": "of the root"}}


class AppRole:
    """The AppRole of a Vault; an unknown secret id is answered with a response, not with data."""

    def __init__(self) -> None:
        self.role_id, self.secrets, self.created = "role-1", dict[str, str](), 0

    def read_role_id(self, _role: str) -> dict[str, Any]:
        return {"data": {"role_id": self.role_id}}

    def read_secret_id(self, _role: str, secret: str) -> object:
        known = secret in self.secrets.values()
        return {"data": {"secret_id_num_uses": 0}} if known else SimpleNamespace(status_code=204)

    def list_secret_id_accessors(self, _role: str) -> dict[str, Any]:
        if not self.secrets:
            raise InvalidPath
        return {"data": {"keys": list(self.secrets)}}

    def destroy_secret_id_accessor(self, _role: str, accessor: str) -> None:
        del self.secrets[accessor]

    def generate_secret_id(self, _role: str) -> dict[str, Any]:
        self.created += 1
        self.secrets[f"accessor-{self.created}"] = f"secret-{self.created}"
        return {"data": {"secret_id": f"secret-{self.created}"}}


class Certificates:
    """The certificate authority of a Consul, which switches its root when it is configured."""

    def __init__(self) -> None:
        self.configured: dict[str, Any] = BUILT_IN
        self.switches, self.rejections = True, 0
        self.root = "built in"

    def current(self) -> dict[str, Any]:
        return self.configured | {"CreateIndex": 1, "ModifyIndex": 2, "State": None}

    def put(self, config: dict[str, Any], provider: str) -> bool:
        if self.rejections:
            self.rejections -= 1
            raise ConsulException("500 CA provider is nil")
        self.configured = {"Provider": provider, "Config": config}
        self.root = "of OpenBao" if self.switches else self.root
        return True

    def list(self) -> dict[str, Any]:
        inactive = {"Active": False, "RootCert": "built in\n"}
        return {"TrustDomain": "1234.consul", "Roots": [inactive, {"Active": True, "RootCert": f"{self.root}\n"}]}


class Cluster:
    """An authority with its servers and the credentials of a stack."""

    def __init__(self, folder: Path) -> None:
        parts = SimpleNamespace(secrets=folder / "secrets", url=lambda name: f"http://{name}", port=lambda _: 1)
        self.stack = cast(Stack, parts)
        self.approle, self.certificates = AppRole(), Certificates()
        self.credentials = Credentials(self.stack)

    @property
    def authority(self) -> CertificateAuthority:
        vault = SimpleNamespace(
            auth=SimpleNamespace(approle=self.approle),
            list=lambda path: {"data": {"keys": ["1"]}} if path == "mesh-root/issuers" else None,
            read=lambda path: {"data": {"certificate": "of OpenBao"}} if path == "mesh-root/cert/ca" else None,
        )
        consul = SimpleNamespace(connect=SimpleNamespace(certificates=self.certificates))
        clients = SimpleNamespace(vault=vault, consul=consul, credentials=self.credentials)
        return CertificateAuthority(self.stack, cast(Clients, clients))

    def planned(self) -> list[Change]:
        return list(self.authority.changes())

    def deployed(self) -> int:
        return apply_all(self.authority.changes())

    def stored(self, name: str) -> str:
        return (self.credentials.folder / name).read_text()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_deploy_stores_a_login_and_configures_consul_with_its_files(cluster: Cluster) -> None:
    assert [(change.where, change.action) for change in cluster.planned()] == [(LOGIN, "add"), (AUTHORITY, "change")]
    assert not cluster.credentials.folder.exists(), "a plan changes nothing"
    assert cluster.deployed() == 2
    assert (cluster.stored(ROLE_ID), cluster.stored(SECRET_ID)) == ("role-1", "secret-1")
    config = cluster.certificates.configured["Config"]
    assert config["Address"] == "http://vault"
    assert config["AuthMethod"]["Params"] == {
        "role_id_file_path": str(cluster.credentials.folder / ROLE_ID),
        "secret_id_file_path": str(cluster.credentials.folder / SECRET_ID),
    }
    assert "${" not in json.dumps(config)


def test_only_the_owner_reads_the_login(cluster: Cluster) -> None:
    cluster.deployed()
    modes = [
        oct(path.stat().st_mode & 0o777) for path in (cluster.credentials.folder, *cluster.credentials.folder.iterdir())
    ]
    assert modes == ["0o700", "0o600", "0o600"]


def test_a_second_deploy_changes_nothing(cluster: Cluster) -> None:
    cluster.deployed()
    assert cluster.planned() == []


def test_a_login_that_openbao_does_not_know_is_replaced_and_all_others_end(cluster: Cluster) -> None:
    cluster.deployed()
    cluster.credentials.store(SECRET_ID, "lost")
    assert [(change.where, change.action) for change in cluster.planned()] == [(LOGIN, "change")]
    assert cluster.deployed() == 1
    assert list(cluster.approle.secrets.values()) == [cluster.stored(SECRET_ID)] == ["secret-2"]
    assert cluster.planned() == []


def test_the_login_follows_a_role_that_was_created_again(cluster: Cluster) -> None:
    cluster.deployed()
    cluster.approle.role_id = "role-2"
    assert cluster.deployed() == 1
    assert cluster.stored(ROLE_ID) == "role-2"


def test_a_configuration_changed_by_hand_is_reverted_and_its_secrets_are_not_shown(cluster: Cluster) -> None:
    cluster.deployed()
    wanted = cluster.certificates.configured
    by_hand = wanted["Config"] | {"LeafCertTTL": "72h", "Token": "of somebody"}
    cluster.certificates.configured = wanted | {"Config": by_hand}
    (change,) = cluster.planned()
    assert change.where == AUTHORITY
    assert {"-", "+"} < set(change.diff())
    assert "72h" in change.diff()
    assert "of somebody" not in change.diff()
    change.apply()
    assert cluster.certificates.configured == wanted


def test_a_private_key_of_the_former_authority_is_not_shown(cluster: Cluster) -> None:
    assert "of the root" not in "".join(change.before for change in cluster.planned())


def test_a_consul_that_is_still_starting_is_configured_a_moment_later(cluster: Cluster) -> None:
    cluster.certificates.rejections = 2
    assert cluster.deployed() == 2
    assert cluster.planned() == []


def test_a_configuration_that_consul_rejects_is_an_error_with_its_reason(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_authority, "_SECONDS", 0)
    cluster.certificates.rejections = 9
    with pytest.raises(StackError, match=r"consul/connect-ca\.json.*CA provider is nil"):
        cluster.deployed()


def test_a_consul_that_keeps_its_root_is_an_error(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_authority, "_SECONDS", 0)
    cluster.certificates.switches = False
    with pytest.raises(StackError, match="its active root is not the certificate of mesh-root"):
        cluster.deployed()


def test_the_trust_domain_is_that_of_consul(cluster: Cluster) -> None:
    assert cluster.authority.trust_domain() == "1234.consul"


def test_the_active_root_is_no_former_one(cluster: Cluster) -> None:
    cluster.deployed()
    assert [cluster.authority.is_former(root) for root in ("built in", "of OpenBao")] == [True, False]
