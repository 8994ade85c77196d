"""Contains all uses of undocumented Sanic features, except for the two methods that `GatewayApp` overrides.

With them in one place, a new version of Sanic is easy to check. docs/fragile.md explains the marker of each use.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.application.state import ApplicationServerInfo
from sanic.compat import Header
from sanic.exceptions import BadURL, SanicException
from sanic.http import Http
from sanic.http.constants import HTTP
from sanic.router import Router
from sanic.server import HttpProtocol
from sanic.server.async_server import AsyncioServer

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
}
_SECURITY_BYTES = tuple((name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items())
_WITHOUT_LINE_ENDS = str.maketrans("", "", "\r\n\0")

UNREADABLE_METHOD = "NONE"  # fragile: sanic-unreadable-method
"""The method that Sanic gives a request whose head could not be read."""


class TolerantRequest(Request):
    """A request that can be created for a head that could not be read, so that an error can answer it."""

    def __init__(  # fragile: sanic-request-constructor
        self, url_bytes: bytes, headers: Header, version: str, method: str, *args: Any, **kwargs: Any
    ) -> None:
        try:
            super().__init__(url_bytes, headers, version, method, *args, **kwargs)
        except BadURL:
            if method != UNREADABLE_METHOD:
                raise
            super().__init__(b"*", headers, version, method, *args, **kwargs)


class SecuredResponse(HTTPResponse):
    """A response with a body, the trace of its request and the security headers.

    Headers are encoded once for all responses, except `traceresponse`, which differs in each.
    """

    __slots__ = ("traceresponse",)

    def __init__(self, body: bytes, status: int, headers: dict[str, str] | None, content_type: str) -> None:
        super().__init__(body, status, {**(headers or {}), "content-type": content_type})
        self.traceresponse = ""

    @property
    def processed_headers(self) -> Iterator[tuple[bytes, bytes]]:  # fragile: sanic-processed-headers
        trace = (b"traceresponse", self.traceresponse.encode())
        return chain(map(_encoded, self.headers.items()), (trace,), _SECURITY_BYTES)


@lru_cache(maxsize=1024)
def _encoded(header: tuple[str, object]) -> tuple[bytes, bytes]:
    """Returns the bytes of a header; a value cannot begin a line of its own."""
    name, value = (str(part).translate(_WITHOUT_LINE_ENDS) for part in header)
    return name.encode("ascii"), value.encode(errors="surrogateescape")


class HeadAsGetRouter(Router):
    """Routes HEAD as GET; Sanic leaves out the body where it writes the response."""

    def _get(self, path: str, method: str, host: str | None) -> Any:  # fragile: sanic-router-get
        return super()._get(path, "GET" if method == "HEAD" else method, host)


def has_unread_body(request: Request) -> bool:
    """True while a part of the request's body was not received."""
    stream = request.stream
    return isinstance(stream, Http) and bool(stream.request_body)  # fragile: sanic-request-body


async def read_chunk(request: Request) -> bytes | None:
    """Returns the next part of the request's body as soon as any of it is here, None after the last."""
    return await request.stream.read() if isinstance(request.stream, Http) else None


def abandon_body(request: Request) -> None:
    """Makes Sanic not wait for the rest of the body, for which no timeout would apply any more; the connection ends."""
    end_connection(request)
    if isinstance(request.stream, Http):
        request.stream.request_body = None  # fragile: sanic-request-body


def end_connection(request: Request) -> None:
    """Makes the response end its connection."""
    if isinstance(request.stream, Http):
        request.stream.keep_alive = False  # fragile: sanic-keep-alive


async def discard_body(request: Request, max_bytes: int, seconds: float) -> None:
    """Reads and drops the rest of the body, because a client that is still sending would not see the response.

    The connection ends after the response if the rest is larger or slower than allowed.
    """
    stream = request.stream
    if not isinstance(stream, Http) or not has_unread_body(request):
        return
    stream.request_max_size = max_bytes  # fragile: sanic-request-max-size
    with suppress(TimeoutError, SanicException):
        async with asyncio.timeout(seconds):
            async for _ in stream:
                pass
    if has_unread_body(request):
        abandon_body(request)


def stream_without_end(request: Request) -> None:
    """Lifts the time limit of the response and ends the connection after it, so that a reconnect may be balanced."""
    protocol: Any = request.protocol
    protocol.response_timeout = math.inf  # fragile: sanic-response-timeout
    protocol.http.keep_alive = False  # fragile: sanic-keep-alive


class TlsProtocol(HttpProtocol):
    """A connection by TLS. It is closed by its transport alone, which first sends all that was written to it.

    Sanic would abort it at once, because it cannot see what waits below TLS to be sent.
    """

    def close(self, _timeout: float | None = None) -> None:  # fragile: sanic-protocol-close
        if self._callback_check_timeouts:  # fragile: sanic-protocol-close
            self._callback_check_timeouts.cancel()  # fragile: sanic-protocol-close
        if self.transport is not None:
            self.transport.close()


def announce_only_http1(app: Sanic[Any, Any], port: str) -> None:
    """Keeps Sanic from adding an empty alt-svc header to each response, as it does if the version is unknown."""
    info = ApplicationServerInfo(settings={"version": HTTP.VERSION_1, "port": port})
    app.state.server_info.append(info)  # fragile: sanic-server-info


def stop_accepting(server: AsyncioServer) -> None:
    """Closes the listening socket and leaves the connections open."""
    server.server.close()  # type: ignore[attr-defined]  # fragile: sanic-asyncio-server


def close_idle_connections(server: AsyncioServer) -> int:
    """Closes each connection without a request; returns how many connections were open before."""
    connections = tuple(server.connections)  # fragile: sanic-connections
    for connection in connections:
        connection.close_if_idle()  # fragile: sanic-connections
    return len(connections)


def abort_connections(server: AsyncioServer) -> int:
    """Aborts every connection; returns how many there were."""
    connections = tuple(server.connections)  # fragile: sanic-connections
    for connection in connections:
        connection.abort()  # fragile: sanic-connections
    return len(connections)
