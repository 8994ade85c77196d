"""TLS by Python's `ssl` with the identity of the mesh, for what does not speak gRPC."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from chassis.mesh.identity import MeshIdentity


def server_context(identity: MeshIdentity, *, of_callers: bool) -> ssl.SSLContext:
    """Returns a context that uses the leaf and the roots of the moment for each handshake.

    With `of_callers`, a caller without a certificate of the mesh is refused. The identity must be ready. Sessions are
    not resumed, because that would skip the check of the caller's certificate.
    """
    current = _snapshot(identity, of_callers)

    def replace() -> None:
        nonlocal current
        current = _snapshot(identity, of_callers)

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called by OpenSSL after the first message of a caller, also if that names no server (RFC 6066, 3)."""
        connection.context = current

    identity.on_change(replace)
    # It has no certificate itself: a new one could replace it, but the roots of a context can only become more.
    front = _server(of_callers)
    front.sni_callback = choose
    return front


def load_leaf(context: ssl.SSLContext, key: bytes, chain: bytes) -> None:
    """Makes a context show a certificate with its private key (PEM), which never reach a disk."""
    with _file_in_memory(key + chain) as path:
        context.load_cert_chain(path)


def peer_id(certificate: Mapping[str, Any] | None) -> bytes:
    """Returns the SPIFFE id in a certificate of `SSLObject.getpeercert`; empty unless it has exactly one URI."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    return uris[0].encode() if len(uris) == 1 else b""


def _snapshot(identity: MeshIdentity, of_callers: bool) -> ssl.SSLContext:
    if identity.current is None:
        raise RuntimeError("the identity of the mesh is not ready")
    leaf, trust = identity.current
    context = _server(of_callers)
    context.load_verify_locations(cadata=trust.roots.decode())
    load_leaf(context, leaf.key, leaf.chain)
    return context


def _server(of_callers: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # an earlier one has sessions that `ssl` cannot switch off
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = ssl.CERT_REQUIRED if of_callers else ssl.CERT_NONE
    return context


@contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Yields the path of a file in memory that is in no folder: `ssl` loads a private key only from a path."""
    with os.fdopen(os.memfd_create("leaf"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
