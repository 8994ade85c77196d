"""Runs the app in the chassis' event loop, and stops it without losing a request that was accepted.

Invariant: stopping takes at most `grace_seconds`, even if a client keeps its connection open.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import structlog
from sanic.server.async_server import AsyncioServer

from chassis.mesh.ssl_context import server_context
from chassis.process import Process
from gateway.http.gateway_app import GatewayApp
from gateway.http.sanic_internals import (
    TlsProtocol,
    abort_connections,
    announce_only_http1,
    close_idle_connections,
    stop_accepting,
)
from gateway.settings import Settings

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_POLL_SECONDS = 0.02
# The handshake of a caller, and its acknowledgement that a connection ends: both are one round trip.
_TLS_OPTIONS = {"ssl_handshake_timeout": 5.0, "ssl_shutdown_timeout": 5.0}


async def listen(app: GatewayApp, address: str, tls: ssl.SSLContext | None = None) -> AsyncioServer:
    """Serves the app at host:port, by TLS or in plaintext; returns once connections are accepted."""
    host, _, port = address.rpartition(":")
    sock = socket.create_server((host, int(port)), backlog=_BACKLOG)
    # Serving starts only after startup(), or the first requests would find an app without routes.
    options: dict[str, Any] = {"start_serving": False, **(_TLS_OPTIONS if tls else {})}
    protocol = TlsProtocol if tls else None
    server: Any = await app.create_server(
        sock=sock, ssl=tls, protocol=protocol, backlog=_BACKLOG, asyncio_server_kwargs=options
    )
    announce_only_http1(app, port)
    await server.startup()
    await server.start_serving()
    log.info("serving", address=address, mesh=tls is not None)
    return server  # type: ignore[no-any-return]


async def serve(app: GatewayApp, create_health: Callable[[GatewayApp], GatewayApp], process: Process[Settings]) -> None:
    """Serves until the process stops and has drained.

    In a mesh each caller needs a certificate. Then the app that `create_health` returns is at an address of its own,
    for checks, which have none. Returns at once if SIGTERM comes before the first certificate.
    """
    if not await process.wait_for_mesh():
        return
    identity, environment = process.join_mesh(), process.environment
    if identity is None:
        servers = [await listen(app, environment.bind_address)]
    else:
        servers = [
            await listen(app, environment.bind_address, server_context(identity, of_callers=True)),
            await listen(create_health(app), environment.health_address, server_context(identity, of_callers=False)),
        ]
    await process.stopping.wait()
    app.config.KEEP_ALIVE = False  # from now on each response ends its connection
    await process.wait_for_drain()
    await asyncio.gather(*(close(server, process.settings.value.grace_seconds) for server in servers))


async def close(server: AsyncioServer, grace: float) -> None:
    """Accepts no more connections, closes idle ones and aborts the rest after `grace` seconds."""
    stop_accepting(server)
    ends_at = time.monotonic() + grace
    while close_idle_connections(server):
        if time.monotonic() >= ends_at:
            break
        await asyncio.sleep(_POLL_SECONDS)
    if aborted := abort_connections(server):
        log.warning("connections aborted, their requests took longer than the grace time", connections=aborted)
