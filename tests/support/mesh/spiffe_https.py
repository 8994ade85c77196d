"""HTTPS to a server of the mesh whose certificate has a SPIFFE id and no DNS name, such as a sidecar of Consul."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Any

from stack.mesh.operator_leaf import Leaf, tls_context

_SECONDS = 10.0


def get(address: tuple[str, int], path: str, leaf: Leaf, server: str) -> tuple[int, str]:
    """Returns status and body; raises SSLCertVerificationError unless the SPIFFE id of the server is `server`."""
    context = tls_context(leaf)
    context.check_hostname = False  # there is none; the chain is verified
    context.set_alpn_protocols(["http/1.1"])
    connection = http.client.HTTPConnection(*address)
    with context.wrap_socket(socket.create_connection(address, _SECONDS)) as stream:
        certificate: Any = stream.getpeercert()
        found = [value for kind, value in certificate["subjectAltName"] if kind == "URI"]
        if found != [server]:
            raise ssl.SSLCertVerificationError(f"the server is {found}, not {server}")
        connection.sock = stream
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
