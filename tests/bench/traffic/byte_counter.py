"""Counts the bytes of a TCP connection: forwards every connection to a port, and adds up what passes both ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ByteCounter:
    """The port to connect to, and how many bytes have passed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port, self.sent, self.received = 0, 0, 0

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, name: str) -> None:
            while data := await source.read(65536):
                setattr(self, name, getattr(self, name) + len(data))
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, there_writer, "sent"), pump(there_reader, writer, "received"))


@contextmanager
def counting(port: int) -> Iterator[ByteCounter]:
    """Yields a counter in front of a port, which runs in a thread until the block ends."""
    counter, ready = ByteCounter(port), threading.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        server = loop.run_until_complete(counter.serve())
        ready.set()
        loop.run_forever()
        server.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield counter
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
