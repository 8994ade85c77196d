"""A Consul and an OpenBao of a test, with the certificate authority of the mesh between them."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import hvac
from consul import Consul
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stack.cluster import vault
from stack.cluster.clients import Clients
from stack.cluster.credentials import Credentials
from stack.cluster.mesh.certificate_authority import ROLE, ROOT_MOUNTS
from stack.cluster.mesh.changes import mesh_changes
from stack.cluster.planned_changes import Change, apply_all
from stack.config import Stack

from ..chassis.servers import ROOT_TOKEN, Server

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
        for name in (*ROOT_MOUNTS, "mesh"):
            apply_all(api._mount(files / "engines" / f"{name}.json", "sys/mounts"))
        apply_all(api._mount(files / "auth" / "approle.json", "sys/auth"))
        apply_all(api._below(files / "auth", files / "auth" / "approle"))

    def deploy(self) -> int:
        """Applies all changes and returns their number."""
        return apply_all(mesh_changes(self.stack, self.clients))

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
