"""Listens in the chassis' event loop, and stops without losing a request that was accepted.

Invariant: the end is bounded by `grace_seconds`, however long a client keeps its connection.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import structlog
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.server.async_server import AsyncioServer

from chassis.process import Process
from gateway.http.gateway_app import Edge
from gateway.settings import Settings

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_LOOK_SECONDS = 0.02


async def listen(app: Edge, address: str) -> AsyncioServer:
    """Serve the app at host:port; returns when connections are accepted."""
    host, _, port = address.rpartition(":")
    sock = socket.create_server((host, int(port)), backlog=_BACKLOG)
    # Serving starts only after startup(), or the first requests meet an app without routes.
    options = {"start_serving": False}
    server: Any = await app.create_server(sock=sock, backlog=_BACKLOG, asyncio_server_kwargs=options)
    # Sanic puts an empty alt-svc into each answer unless it knows that there is one version of HTTP only.
    app.state.server_info.append(ApplicationServerInfo(settings={"version": HTTP.VERSION_1, "port": port}))
    await server.startup()
    await server.start_serving()
    log.info("serving", address=address)
    return server  # type: ignore[no-any-return]


async def serve(app: Edge, process: Process[Settings]) -> None:
    """Serve until the process is told to stop and has drained."""
    server = await listen(app, process.environment.bind_address)
    await process.stopping.wait()
    app.config.KEEP_ALIVE = False  # each answer from now on ends its connection
    await process.until_drained()
    await close(server, process.settings.value.grace_seconds)


async def close(server: AsyncioServer, grace: float) -> None:
    """Refuse new connections, end idle ones at once, give the rest `grace` seconds."""
    server.server.close()  # type: ignore[attr-defined]
    ends_at = time.monotonic() + grace
    while server.connections and time.monotonic() < ends_at:
        for connection in tuple(server.connections):
            connection.close_if_idle()
        await asyncio.sleep(_LOOK_SECONDS)
    for connection in tuple(server.connections):
        log.warning("connection cut, its request took longer than the grace time")
        connection.abort()
