"""Certificates with the names of a service that no service accepts."""

from __future__ import annotations

import time
from dataclasses import replace

from support.mesh.authority import Authority

from chassis.mesh.certificate_request import build
from chassis.mesh.names import server_name, spiffe_id
from stack.cluster.clients import Clients
from stack.mesh.operator_leaf import Leaf, issue


def trust_domain(clients: Clients) -> str:
    return str(clients.consul.connect.certificates.list()["TrustDomain"])


def foreign_leaf(clients: Clients, name: str) -> Leaf:
    """The names of a service, signed by another authority."""
    return replace(Authority(trust_domain(clients)).leaf(name), roots=issue(clients).roots)


def ended_leaf(clients: Clients, name: str) -> Leaf:
    """A leaf of a service whose time is over."""
    key, request = build(server_name(name), spiffe_id(name, trust_domain(clients)))
    sign = clients.vault.secrets.pki.sign_certificate
    signed = sign(name, request, "", {"ttl": "1s"}, "mesh")["data"]
    chain = "\n".join([signed["certificate"], *signed["ca_chain"]]).encode()
    time.sleep(max(0.0, signed["expiration"] - time.time()) + 1.5)
    return replace(issue(clients), key=key.encode(), chain=chain)
