"""Mutual TLS of gRPC with the identity of the mesh: credentials of a server, and channels to other services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from chassis.mesh.identity import MeshIdentity
from chassis.mesh.names import server_name


def server_credentials(identity: MeshIdentity, *, of_callers: bool) -> grpc.ServerCredentials:
    """Returns credentials that use the leaf and the roots of the moment for each handshake.

    With `of_callers`, a caller without a certificate of the mesh is refused. The identity must be ready.
    """
    given = identity.current

    def configuration() -> grpc.ServerCertificateConfiguration:
        nonlocal given
        given = identity.current
        if given is None:
            raise RuntimeError("the identity of the mesh is not ready")
        leaf, trust = given
        return grpc.ssl_server_certificate_configuration([(leaf.key, leaf.chain)], trust.roots)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc at each handshake, in a thread of its own; None keeps the configuration."""
        now = identity.current
        if now is None or (given is not None and now[0] is given[0] and now[1] is given[1]):
            return None
        return configuration()

    fetch: Any = changed  # the stubs do not know that it may return None
    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, require_client_authentication=of_callers)


def channel(
    identity: MeshIdentity, service: str, address: str, options: Sequence[tuple[str, int | str]]
) -> grpc.aio.Channel | None:
    """Returns a channel to an instance that must prove to be of `service`; None while there is no leaf to show."""
    current = identity.current
    if current is None:
        return None
    leaf, trust = current
    credentials = grpc.ssl_channel_credentials(trust.roots, leaf.key, leaf.chain)
    named = (*options, ("grpc.ssl_target_name_override", server_name(service)))
    return grpc.aio.secure_channel(address, credentials, options=named)
