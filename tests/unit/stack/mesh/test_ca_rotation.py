"""`rotate mesh-ca`: which instances use a new root, by real handshakes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from support.mesh.authority import TRUST_DOMAIN, Authority

from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change
from stack.console import StackError
from stack.mesh import ca_rotation
from stack.mesh.ca_rotation import Instances, Rotation

HOST = "127.0.0.1"
WORKER = "order-service-worker"


class Cluster:
    """OpenBao signs below a new root, and Consul lists instances of two services of the job `order-service`."""

    def __init__(self) -> None:
        self.old, self.new = Authority(), Authority()
        self.mesh = "on"
        self.ports: dict[str, int] = {}
        self.servers: list[grpc.Server] = []

    def instance(self, service: str, presents: Authority, trusts: str) -> None:
        leaf = presents.leaf("order-service")
        credentials = grpc.ssl_server_credentials([(leaf.key, leaf.chain)], trusts.encode(), require_client_auth=True)
        server = grpc.server(ThreadPoolExecutor(1))
        self.ports[service] = server.add_secure_port(f"{HOST}:0", credentials)
        self.servers.append(server)
        server.start()

    @property
    def instances(self) -> Instances:
        roots = [{"RootCert": each.root, "Active": each is self.new} for each in (self.old, self.new)]
        certificates = SimpleNamespace(list=lambda: {"TrustDomain": TRUST_DOMAIN, "Roots": roots})
        consul = SimpleNamespace(
            connect=SimpleNamespace(certificates=certificates), health=SimpleNamespace(service=self._healthy)
        )
        pki = SimpleNamespace(sign_certificate=lambda _name, csr, *_, **__: {"data": self.new.signed(csr)})
        vault = SimpleNamespace(secrets=SimpleNamespace(pki=pki))
        job = Jobs({"order-service": self.mesh})
        return Instances(cast(Clients, SimpleNamespace(consul=consul, vault=vault, nomad=SimpleNamespace(job=job))))

    def outside(self) -> list[str]:
        return self.instances.outside([x509.load_pem_x509_certificate(self.new.intermediate.encode())])

    def _healthy(self, name: str, passing: bool) -> tuple[int, list[dict[str, Any]]]:
        assert passing
        return 1, [{"Service": {"Address": HOST, "Port": self.ports[name]}}] if name in self.ports else []


class Jobs(dict[str, str]):
    def get_job(self, name: str) -> dict[str, Any]:
        groups = [[{"Name": name}], [{"Name": WORKER}]]
        return {
            "TaskGroups": [
                {"Tasks": [{"Env": {"MESH": self[name]}, "Meta": None}], "Services": each} for each in groups
            ]
        }


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for server in made.servers:
        server.stop(None)


def test_an_instance_uses_the_new_root_if_it_presents_a_certificate_below_it_and_accepts_one(cluster: Cluster) -> None:
    both = cluster.old.root + cluster.new.root
    cluster.instance("order-service", cluster.new, both)
    cluster.instance(WORKER, cluster.new, both)
    assert cluster.instances.count() == 2
    assert cluster.outside() == []


def test_an_instance_with_an_old_certificate_is_named_with_the_reason(cluster: Cluster) -> None:
    cluster.instance("order-service", cluster.new, cluster.old.root + cluster.new.root)
    cluster.instance(WORKER, cluster.old, cluster.old.root + cluster.new.root)
    (found,) = cluster.outside()
    assert found.startswith(f"{WORKER} at {HOST}:{cluster.ports[WORKER]}: ")
    assert "its certificate is of another authority" in found


def test_an_instance_that_does_not_trust_the_new_root_is_named(cluster: Cluster) -> None:
    cluster.instance("order-service", cluster.new, cluster.old.root)
    (found,) = cluster.outside()
    assert found.startswith("order-service at ")


def test_a_job_outside_of_the_mesh_is_not_waited_for(cluster: Cluster) -> None:
    cluster.instance("order-service", cluster.old, cluster.old.root)
    cluster.mesh = "off"
    assert (cluster.instances.count(), cluster.outside()) == (0, [])


def test_nothing_begins_while_a_file_differs() -> None:
    change = Change("vault policy consul-ca", "before", "after", lambda: None)
    with pytest.raises(StackError, match="vault policy consul-ca is not as in its file"):
        ca_rotation._require_no_change(iter([change]))
    ca_rotation._require_no_change(iter([]))


def test_the_root_that_consul_uses_is_never_deleted() -> None:
    authority: Any = SimpleNamespace(root_mount=lambda: "mesh-root")  # anything else would be an AttributeError
    with pytest.raises(StackError, match="Consul uses the root in mesh-root again"):
        Rotation(authority, cast(Any, None), cast(Any, None))._delete_old("mesh-root")
