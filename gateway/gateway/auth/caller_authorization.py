"""Checks the service that sent a request, by its certificate and the intentions of the mesh."""

from __future__ import annotations

import time
from typing import Any

from sanic import Request

from chassis.errors import RpcError
from chassis.mesh.ssl_context import peer_id
from chassis.serving.authorization import Authorization
from gateway.http.problems import Problem
from gateway.http.sanic_internals import end_connection

# A certificate lasts an hour; a caller that keeps its connection for longer has to show a valid one again.
_CONNECTION_SECONDS = 3600.0


class CallerAuthorization:
    """Decides on each request of a server that demands certificates of its callers."""

    def __init__(self, authorization: Authorization) -> None:
        self._authorization = authorization

    def check(self, request: Request) -> Problem | None:
        """Returns the problem if no intention allows the request; otherwise sets `request.ctx.caller` to a name."""
        peer = _peer(request)
        if time.monotonic() > peer.expires_at:
            end_connection(request)
        # As requests are routed: without slashes at the end, and HEAD as GET.
        method, path = "GET" if request.method == "HEAD" else request.method, request.path.rstrip("/") or "/"
        try:
            request.ctx.caller = self._authorization.check_request(peer.spiffe_id, method, path)
        except RpcError:
            return Problem("FORBIDDEN")
        return None


class _Peer:
    """The other end of a connection: the id in its certificate, and until when it may send requests."""

    __slots__ = ("expires_at", "spiffe_id")

    def __init__(self, request: Request) -> None:
        certificate = request.transport.get_extra_info("peercert")
        self.spiffe_id = peer_id(certificate)
        self.expires_at = time.monotonic() + _CONNECTION_SECONDS


def _peer(request: Request) -> _Peer:
    """Returns the peer of a request, which is made at the first request of its connection."""
    connection: Any = request.conn_info
    peer: _Peer | None = getattr(connection.ctx, "peer", None)
    if peer is None:
        peer = connection.ctx.peer = _Peer(request)
    return peer
