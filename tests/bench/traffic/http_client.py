"""Kept-alive HTTP/1.1 connections that cost little, so that the measured process and not its client is the limit.

h11 writes the bytes of a request once, httptools parses the responses.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import h11
import httptools

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended; `status` is 0 if the connection was lost, and `seconds` count from when it was due."""

    status: int
    body: bytes
    seconds: float


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """Returns a request as it is sent."""
    length = {"Content-Length": str(len(body))} if body else {}
    head = h11.Request(method=method, target=path, headers=[*{"Host": "bench", **length, **(headers or {})}.items()])
    connection = h11.Connection(h11.CLIENT)
    sent = connection.send(head) or b""
    return sent + (connection.send(h11.Data(data=body)) or b"" if body else b"")


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted, and the name that the server must have."""

    context: ssl.SSLContext
    server_name: str


class Connection(asyncio.Protocol):
    """One connection, used by one request at a time; it is opened again after a loss."""

    def __init__(self, port: int, source: str = "127.0.0.1", tls: Tls | None = None) -> None:
        self._port, self._source = port, source
        self._options: dict[str, Any] = {"ssl": tls.context, "server_hostname": tls.server_name} if tls else {}
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[int] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()

    async def exchange(self, data: bytes, due: float | None = None) -> Answer:
        """Sends a request and returns its answer, whose time counts from `due` (time.perf_counter), by default now."""
        began = time.perf_counter() if due is None else due
        try:
            if self._transport is None or self._transport.is_closing():
                await self._open()
            assert self._transport is not None
            self._parser, self._body = httptools.HttpResponseParser(self), bytearray()
            self._answered = asyncio.get_running_loop().create_future()
            self._transport.write(data)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                status = await self._answered
        except (OSError, TimeoutError) as error:
            self.close()
            return Answer(0, repr(error).encode(), time.perf_counter() - began)
        return Answer(status, bytes(self._body), time.perf_counter() - began)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        address = (self._source, 0)
        await loop.create_connection(lambda: self, "127.0.0.1", self._port, local_addr=address, **self._options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed without an answer"))

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by httptools."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())
