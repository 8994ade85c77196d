"""A closed loop of gRPC calls on one connection, as a caller within the system makes them: with deadline and trace."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterable
from typing import Any

import grpc.aio
import uvloop
from bench.traffic.http_client import Answer
from bench.traffic.load import Load

_DEADLINE_SECONDS, _PAUSE_SECONDS = 3.0, 0.01
_GOOD = 200
# As HTTP would say it; any other error ends the measurement.
_REJECTED = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def closed_loop(
    address: str, path: str, messages: Iterable[bytes], callers: int, seconds: float, *, traced: bool = False
) -> Load:
    """Each caller sends the next message when it has the answer to the last one, or a moment after a rejection."""
    return uvloop.run(_closed(address, path, messages, callers, seconds, traced=traced))


def call(address: str, path: str, message: bytes) -> bytes:
    """Makes one call and returns the serialized answer; waits for the server."""
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(path)
        return bytes(method(message, timeout=20, wait_for_ready=True))


async def _closed(
    address: str, path: str, messages: Iterable[bytes], callers: int, seconds: float, *, traced: bool
) -> Load:
    load, following = Load(), itertools.cycle(messages)
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(path)
        await channel.channel_ready()
        began = time.perf_counter()

        async def repeat() -> None:
            while (sent := time.perf_counter()) - began < seconds:
                metadata = (("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-0{int(traced)}"),)
                try:
                    await method(next(following), timeout=_DEADLINE_SECONDS, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    load.statuses[_REJECTED[error.code()]] += 1
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    load.add(Answer(_GOOD, b"", time.perf_counter() - sent))

        await asyncio.gather(*(repeat() for _ in range(callers)))
        load.seconds = time.perf_counter() - began
    return load
