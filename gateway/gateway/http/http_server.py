"""Runs the app in the chassis' event loop, and stops it without losing a request that was accepted.

Invariant: stopping takes at most `grace_seconds`, even if a client keeps its connection open.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import structlog
from sanic.server.async_server import AsyncioServer

from chassis.process import Process
from gateway.http.gateway_app import GatewayApp
from gateway.http.sanic_internals import (
    abort_connections,
    announce_only_http1,
    close_idle_connections,
    stop_accepting,
)
from gateway.settings import Settings

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_POLL_SECONDS = 0.02


async def listen(app: GatewayApp, address: str) -> AsyncioServer:
    """Serves the app at host:port; returns once connections are accepted."""
    host, _, port = address.rpartition(":")
    sock = socket.create_server((host, int(port)), backlog=_BACKLOG)
    # Serving starts only after startup(), or the first requests would find an app without routes.
    options = {"start_serving": False}
    server: Any = await app.create_server(sock=sock, backlog=_BACKLOG, asyncio_server_kwargs=options)
    announce_only_http1(app, port)
    await server.startup()
    await server.start_serving()
    log.info("serving", address=address)
    return server  # type: ignore[no-any-return]


async def serve(app: GatewayApp, process: Process[Settings]) -> None:
    """Serves until the process stops and has drained."""
    server = await listen(app, process.environment.bind_address)
    await process.stopping.wait()
    app.config.KEEP_ALIVE = False  # from now on each response ends its connection
    await process.wait_for_drain()
    await close(server, process.settings.value.grace_seconds)


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
