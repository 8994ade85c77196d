"""Clients that treat the edge badly, with a connection each: crowds, resets, idle connections, slow bodies."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from urllib.parse import urlsplit

_PATIENCE_SECONDS = 20.0
_PAUSE_SECONDS = 0.2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Address:
    """Where the edge listens."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        return cls(str(parts.hostname), int(parts.port or 80))

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=_PATIENCE_SECONDS)


def head(method: str, path: str, headers: dict[str, str] | None = None, length: int | None = None) -> bytes:
    """The head of a request; with the length of a JSON body that follows."""
    body = {} if length is None else {"Content-Type": "application/json", "Content-Length": str(length)}
    lines = [f"{name}: {value}" for name, value in ({"Host": "edge"} | body | (headers or {})).items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


@contextmanager
def many_open_files() -> Iterator[None]:
    """Allows this process as many connections as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a crowd


@dataclass
class Crowd:
    """Clients that send one request again after each answer, and a little later after a rejection."""

    address: Address
    request: bytes
    outcomes: Counter[str] = field(default_factory=Counter)
    """`200`, `503 with a hint`, any other status, or the name of an error of the connection."""

    def run(self, clients: int, seconds: float) -> None:
        """Returns when every client has its last answer."""
        asyncio.run(self._run(clients, time.monotonic() + seconds))

    async def _run(self, clients: int, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(until))

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
                try:
                    await self._converse(reader, writer, until)
                finally:
                    writer.close()
            except (OSError, EOFError, TimeoutError) as error:
                self.outcomes[type(error).__name__] += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float) -> None:
        while time.monotonic() < until:
            writer.write(self.request)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                outcome = await _outcome(reader)
            self.outcomes[outcome] += 1
            if outcome != "200":
                await asyncio.sleep(_PAUSE_SECONDS)


async def _outcome(reader: asyncio.StreamReader) -> str:
    received = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status, *lines = received.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers["content-length"]))
    hinted = "retry-after" in headers and b'"/problems/' in body
    return status.split()[1] + (" with a hint" if hinted else "")


# --- connections that are no use


def reset(address: Address, request: bytes, times: int) -> None:
    """Sends requests that are each followed by a reset, without reading the answer."""
    for _ in range(times):
        with suppress(OSError), address.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            connection.sendall(request)


@contextmanager
def idle(address: Address, request: bytes, count: int) -> Iterator[int]:
    """Connections that have received an answer and stay open; yields how many there are."""
    with many_open_files(), _opened(address, request, count) as held:
        for connection in held:
            connection.recv(4096)
        yield len(held)


@contextmanager
def unfinished_bodies(address: Address, begun: bytes, count: int, every: float = 4.0) -> Iterator[list[socket.socket]]:
    """Connections whose request is never complete: they have sent `begun`, and a byte more now and then."""
    ended = False

    def trickle(held: list[socket.socket]) -> None:
        while not ended:
            time.sleep(every)
            for connection in held:
                with suppress(OSError):
                    connection.sendall(b" ")

    with many_open_files(), _opened(address, begun, count) as held:
        Thread(target=trickle, args=(held,), daemon=True).start()
        try:
            yield held
        finally:
            ended = True


@contextmanager
def _opened(address: Address, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            connection = address.connect()
            held.append(connection)
            connection.sendall(sent)
        yield held
    finally:
        for connection in held:
            connection.close()
