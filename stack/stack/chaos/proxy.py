"""A TCP proxy on the loopback that does to its connections what a bad network does.

Invariant: without a toxic every byte and every end of a stream is passed on, in order; a toxic acts at once, on
connections that are open already too.
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
_CHUNKS_ON_THE_WAY = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Toxic:
    """What happens to bytes on their way; nothing, unless said otherwise."""

    latency_seconds: float = 0.0
    """So much later comes each part of an answer."""
    reset_share: float = 0.0
    """So much (0 to 1) of what callers send resets its connection instead of arriving."""
    bytes_per_second: float = math.inf
    """In each direction of each connection."""
    silent: bool = False
    """Connections are accepted and nothing moves on them; what was sent meanwhile arrives afterwards."""
    half_open: bool = False
    """What is connected when it begins has lost its peer without being told; who connects later is served."""


HEALTHY = Toxic()


class Proxy:
    """Listens on a port of its own and passes on to `target` (host and port)."""

    def __init__(self, target: tuple[str, int], toxic: Toxic = HEALTHY) -> None:
        self.target, self.toxic = target, toxic
        self._moving = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.become(toxic)

    async def open(self) -> int:
        """The port it listens on from now on."""
        self._server = await asyncio.start_server(self._accept, HOST, 0, limit=_CHUNK_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    def become(self, toxic: Toxic) -> None:
        """Behave differently from now on; connections that had lost their peer are reset once that is over."""
        self.toxic = toxic
        for connection in list(self._connections):
            if toxic.half_open:
                connection.dead = True
            elif connection.dead:
                connection.reset()
        if toxic.silent:
            self._moving.clear()
        else:
            self._moving.set()

    async def close(self) -> None:
        """Stop to listen and reset what is left."""
        self.become(HEALTHY)
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.reset()
        await asyncio.sleep(0)

    async def moving(self) -> None:
        """Returns when bytes may move."""
        await self._moving.wait()

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
    """A caller's connection and the one made for it."""

    def __init__(self, proxy: Proxy, caller: asyncio.StreamWriter) -> None:
        self.proxy, self.dead = proxy, False
        self._caller, self._server = caller, caller

    async def run(self, reader: asyncio.StreamReader) -> None:
        answers, self._server = await asyncio.open_connection(*self.proxy.target, limit=_CHUNK_BYTES)
        there = _Flow(self, reader, self._server, answering=False)
        back = _Flow(self, answers, self._caller, answering=True)
        work = [asyncio.ensure_future(part) for flow in (there, back) for part in (flow.take(), flow.give())]
        try:
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()

    def reset(self) -> None:
        """End it so that the caller sees a reset instead of an orderly end."""
        with contextlib.suppress(OSError):
            self._caller.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._caller.transport.abort()
        self._server.transport.abort()

    def close(self) -> None:
        self._caller.close()
        self._server.close()


class _Flow:
    """One direction: `take` reads and says when each part is due, `give` writes it then."""

    def __init__(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answering: bool,
    ) -> None:
        self.connection, self.answering = connection, answering
        self._reader, self._writer = reader, writer
        self._due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)
        self._now = asyncio.get_running_loop().time

    @property
    def _toxic(self) -> Toxic:
        return self.connection.proxy.toxic

    async def take(self) -> None:
        data = b"more"
        while data:
            data = await self._reader.read(_CHUNK_BYTES)
            await self.connection.proxy.moving()
            if data and not self.answering and random.random() < self._toxic.reset_share:  # noqa: S311
                raise ConnectionResetError("as ordered")
            late = self._toxic.latency_seconds if self.answering else 0.0
            await self._due.put((self._now() + late, data))

    async def give(self) -> None:
        while True:
            due, data = await self._due.get()
            await asyncio.sleep(due - self._now())
            if not data:
                if not self.connection.dead:  # a peer that has vanished says no good-bye
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
