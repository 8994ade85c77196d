"""The operator's certificate (leaf) in the mesh, signed by OpenBao; Consul has the roots and the trust domain.

The private key is made in this process and is never in a file on disk.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chassis.mesh import certificate_request
from chassis.mesh.names import server_name, spiffe_id
from chassis.mesh.ssl_context import load_leaf
from stack.cluster.clients import OPERATOR, Clients

_MOUNT = "mesh"


@dataclass(frozen=True)
class Leaf:
    """A certificate with its intermediates, its private key, and the roots of the mesh, all as PEM."""

    key: bytes = field(repr=False)
    chain: bytes
    roots: bytes
    begins: float
    ends: float
    """In seconds, as time.time()."""

    def is_due(self) -> bool:
        """Returns whether half of its time is over, so that it should be replaced."""
        return time.time() > (self.begins + self.ends) / 2

    def is_over(self) -> bool:
        """Returns whether no server accepts it any more."""
        return time.time() > self.ends


def issue(clients: Clients, name: str = OPERATOR) -> Leaf:
    """Returns a new leaf of the operator, or of the service `name`, which OpenBao also signs for the operator."""
    found = clients.consul.connect.certificates.list()
    key, request = certificate_request.build(server_name(name), spiffe_id(name, found["TrustDomain"]))
    begins = time.time()
    signed = clients.vault.secrets.pki.sign_certificate(name, request, "", mount_point=_MOUNT)["data"]
    chain = [signed["certificate"], *(signed.get("ca_chain") or [signed["issuing_ca"]])]
    roots = [root["RootCert"] for root in found["Roots"]]
    return Leaf(key.encode(), _joined(chain), _joined(roots), begins, float(signed["expiration"]))


def tls_context(leaf: Leaf) -> ssl.SSLContext:
    """Returns the settings of a client that shows this leaf, and accepts servers of the mesh by their DNS name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the host name
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=leaf.roots.decode())
    load_leaf(context, leaf.key, leaf.chain)
    return context


def _joined(certificates: Sequence[str]) -> bytes:
    return "".join(f"{pem.strip()}\n" for pem in certificates).encode()
