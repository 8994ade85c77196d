"""A TCP proxy on the loopback that simulates a bad network.

Invariant: without a toxic it forwards every byte and every end of a stream, in order. A toxic takes effect immediately,
also on connections that are already open.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

HOST = "127.0.0.1"
_CHUNK_BYTES = 16_384
_MAX_QUEUED_CHUNKS = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Toxic:
    """A simulated fault of a connection; the defaults have no effect."""

    latency_seconds: float = 0.0
    """The delay of each part of a response."""
    reset_share: float = 0.0
    """The share (0 to 1) of the data of callers that resets its connection instead of arriving."""
    bytes_per_second: float = math.inf
    """In each direction of each connection."""
    silent: bool = False
    """Connections are accepted and no data moves on them; data sent meanwhile arrives afterwards."""
    half_open: bool = False
    """Open connections lose their peer without notice; later connections work."""


HEALTHY = Toxic()


class Proxy:
    """Listens on a free port and forwards to `target` (host and port)."""

    def __init__(self, target: tuple[str, int], toxic: Toxic = HEALTHY) -> None:
        self.target, self.toxic = target, toxic
        self._may_move = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.apply(toxic)

    async def open(self) -> int:
        """Starts to listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, HOST, 0, limit=_CHUNK_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    def apply(self, toxic: Toxic) -> None:
        """Replaces the toxic; connections that have lost their peer are reset when `half_open` ends."""
        self.toxic = toxic
        for connection in list(self._connections):
            if toxic.half_open:
                connection.dead = True
            elif connection.dead:
                connection.reset()
        if toxic.silent:
            self._may_move.clear()
        else:
            self._may_move.set()

    async def close(self) -> None:
        """Stops to listen and resets the open connections."""
        self.apply(HEALTHY)
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.reset()
        await asyncio.sleep(0)

    async def wait_until_moving(self) -> None:
        """Returns when data may move."""
        await self._may_move.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            await connection.run(reader)
        except OSError:
            connection.reset()
        finally:
            connection.close()
            self._connections.discard(connection)


class _Connection:
    """The connection of a caller, and the connection to the target that belongs to it."""

    def __init__(self, proxy: Proxy, caller: asyncio.StreamWriter) -> None:
        self.proxy, self.dead = proxy, False
        self._caller, self._server = caller, caller

    async def run(self, reader: asyncio.StreamReader) -> None:
        responses, self._server = await asyncio.open_connection(*self.proxy.target, limit=_CHUNK_BYTES)
        forth = _Flow(self, reader, self._server, is_response=False)
        back = _Flow(self, responses, self._caller, is_response=True)
        work = [asyncio.ensure_future(part) for flow in (forth, back) for part in (flow.receive(), flow.send())]
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()

    def reset(self) -> None:
        """Ends both connections with a reset."""
        with contextlib.suppress(OSError):
            self._caller.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._caller.transport.abort()
        self._server.transport.abort()

    def close(self) -> None:
        self._caller.close()
        self._server.close()


class _Flow:
    """One direction: `receive` reads and queues each part with its due time, `send` writes it at that time."""

    def __init__(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_response: bool,
    ) -> None:
        self.connection, self.is_response = connection, is_response
        self._reader, self._writer = reader, writer
        self._due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_QUEUED_CHUNKS)
        self._now = asyncio.get_running_loop().time

    @property
    def _toxic(self) -> Toxic:
        return self.connection.proxy.toxic

    async def receive(self) -> None:
        data = b"more"
        while data:
            data = await self._reader.read(_CHUNK_BYTES)
            await self.connection.proxy.wait_until_moving()
            if data and not self.is_response and random.random() < self._toxic.reset_share:  # noqa: S311
                raise ConnectionResetError("reset_share of the toxic")
            delay = self._toxic.latency_seconds if self.is_response else 0.0
            await self._due.put((self._now() + delay, data))

    async def send(self) -> None:
        while True:
            due, data = await self._due.get()
            await asyncio.sleep(due - self._now())
            if not data:
                if not self.connection.dead:  # a lost peer sends no end of stream
                    self._writer.write_eof()
                return
            for part in self._parts(data):
                await self._write(part)

    def _parts(self, data: bytes) -> Iterator[bytes]:
        rate = self._toxic.bytes_per_second
        size = len(data) if math.isinf(rate) else max(1, round(rate / 20))
        return (data[at : at + size] for at in range(0, len(data), size))

    async def _write(self, part: bytes) -> None:
        await asyncio.sleep(len(part) / self._toxic.bytes_per_second)
        if not self.connection.dead:
            self._writer.write(part)
            await self._writer.drain()
