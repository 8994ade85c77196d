"""The operator's certificate (leaf) in the mesh, signed by OpenBao; Consul has the roots and the trust domain.

The private key is made in this process and is never in a file on disk.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509

from chassis.mesh import certificate_request
from chassis.mesh.names import server_name, spiffe_id
from chassis.mesh.ssl_context import load_leaf
from stack.cluster.clients import OPERATOR, Clients

_MOUNT = "mesh"
# The preface of a connection and an empty frame of settings (RFC 9113, 3.4), and a question that each server answers.
_GREETING_HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_GREETING_HTTP_1 = b"OPTIONS * HTTP/1.1\r\nHost: instance\r\nConnection: close\r\n\r\n"
_SECONDS = 5


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


def presented(context: ssl.SSLContext, service: str, address: tuple[str, int]) -> x509.Certificate:
    """Returns the certificate of an instance, which has to be valid for the service.

    Raises OSError if it is not, or the instance does not accept the certificate in the settings of the client.
    """
    with (
        socket.create_connection(address, timeout=_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=server_name(service)) as encrypted,
    ):
        # With TLS 1.3 a client learns only from an answer whether it is accepted.
        encrypted.sendall(_GREETING_HTTP_2 if encrypted.selected_alpn_protocol() == "h2" else _GREETING_HTTP_1)
        if not encrypted.recv(1):
            raise ConnectionError("it closed the connection")
        return x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"")


def _joined(certificates: Sequence[str]) -> bytes:
    return "".join(f"{pem.strip()}\n" for pem in certificates).encode()
