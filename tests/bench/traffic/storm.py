"""A storm of handshakes: calls at a fixed rate on an open channel, while another process opens many new ones."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from bench.traffic.new_channels import Target

_PROGRAM = Path(__file__).with_name("new_channels.py")
_DEADLINE_SECONDS, _CALM_SECONDS = 3.0, 1.0
_START_SECONDS = 30.0
# A call within the system has a trace, and most traces are not recorded.
Metadata = Sequence[tuple[str, str]]
_METADATA = (("traceparent", f"00-{'1' * 32}-{'2' * 16}-00"),)


@dataclass(frozen=True)
class Storm:
    """The longest call before and during a storm, and the time until the last new channel was open, in milliseconds."""

    calm: float
    longest: float
    lasted: float


@dataclass
class Calls:
    """When each call was due and when it was answered; latency counts from the moment at which it was due."""

    rate: float
    metadata: Metadata = ()
    answered: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def send(self, call: Callable[[bytes], Awaitable[object]], messages: Sequence[bytes]) -> None:
        """Sends calls whatever is answered, until it is cancelled; then waits for those in progress."""
        began, sending = time.perf_counter(), set()
        try:
            for number, message in enumerate(itertools.cycle(messages)):
                due = began + number / self.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sending.add(asyncio.create_task(self._send(call, message, due)))
        finally:
            await asyncio.gather(*sending)

    async def _send(self, call: Callable[[bytes], Awaitable[object]], message: bytes, due: float) -> None:
        try:
            await call(message)
        except grpc.aio.AioRpcError as error:
            self.errors.append(f"{error.code().name}: {error.details()}")
        else:
            self.answered.append((due, time.perf_counter()))

    def longest(self, begins: float, ends: float) -> float:
        """Returns the milliseconds of the longest call that was in progress in this time; 0 if there was none."""
        found = [end - due for due, end in self.answered if end > begins and due < ends]
        return max(found, default=0.0) * 1000


def storm(
    target: Target, path: str, messages: Sequence[bytes], rate: float, count: int, *, metadata: Metadata = ()
) -> Storm:
    """Makes `rate` calls a second, and `count` new channels meanwhile. Raises SystemExit if a call fails."""
    return uvloop.run(_storm(Calls(rate, metadata), target, path, messages, count))


async def _storm(calls: Calls, target: Target, path: str, messages: Sequence[bytes], count: int) -> Storm:
    rate = calls.rate
    async with _new_channels(target, count) as open_channels, target.channel() as channel:
        method: Any = channel.unary_unary(path)
        await channel.channel_ready()
        call = partial(method, timeout=_DEADLINE_SECONDS, metadata=(*_METADATA, *calls.metadata))
        sending = asyncio.create_task(calls.send(call, messages))
        calm = time.perf_counter()
        await asyncio.sleep(_CALM_SECONDS)
        began = time.perf_counter()
        connections = await open_channels()
        ended = time.perf_counter()
        await asyncio.sleep(1 / rate)
        sending.cancel()
        await asyncio.wait([sending])
    if calls.errors or connections < count:
        raise SystemExit(f"{connections} connections of {count}; {len(calls.errors)} failed calls: {calls.errors[:1]}")
    return Storm(calls.longest(calm, began), calls.longest(began, ended), (ended - began) * 1000)


@asynccontextmanager
async def _new_channels(target: Target, count: int) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Starts the process; yields what opens all channels and returns the number of their connections."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, str(_PROGRAM), str(count)]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def exchange(line: str) -> str:
        stdin.write(f"{line}\n".encode())
        await stdin.drain()
        async with asyncio.timeout(_START_SECONDS):
            return (await stdout.readline()).decode().strip()

    async def open_channels() -> int:
        return int(await exchange("") or 0)

    try:
        await exchange(target.as_json())
        yield open_channels
    finally:
        stdin.close()
        await process.wait()
