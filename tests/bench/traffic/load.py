"""Loads of an HTTP server: a closed loop of some connections, and an open loop at a fixed rate."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvloop
from bench.traffic.http_client import Answer, Connection, Tls

_MOST_CONNECTIONS = 400


@dataclass
class Load:
    """The answers of a load by status, the latencies of the good ones, and how long it took."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        if 200 <= answer.status < 300:
            self.latencies.append(answer.seconds)

    @property
    def good(self) -> int:
        return len(self.latencies)

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.good

    def milliseconds(self, share: float) -> float:
        """A quantile of the latencies of good answers."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    def must_be_good(self) -> Load:
        """Raises SystemExit if a request failed: its cost would count as that of an answer."""
        if self.failed or not self.good:
            raise SystemExit(f"not every request was answered: {dict(self.statuses)}")
        return self


def closed_loop(port: int, requests: list[bytes], connections: int, seconds: float, tls: Tls | None = None) -> Load:
    """Each connection sends the next request when it has the answer to the last one."""
    return uvloop.run(_closed(port, requests, connections, seconds, tls))


def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    """Sends `rate` requests a second whatever is answered; latency counts from the moment at which one was due."""
    return uvloop.run(_open(port, requests, rate, seconds))


def source(number: int) -> str:
    """Returns one of some addresses of loopback, because the edge limits the requests of one address."""
    return f"127.0.0.{2 + number % 16}"


async def _closed(port: int, requests: list[bytes], connections: int, seconds: float, tls: Tls | None) -> Load:
    load, following = Load(), itertools.cycle(requests)
    began = time.perf_counter()

    async def repeat(connection: Connection) -> None:
        while time.perf_counter() - began < seconds:
            load.add(await connection.exchange(next(following)))
        connection.close()

    await asyncio.gather(*(repeat(Connection(port, source(number), tls)) for number in range(connections)))
    load.seconds = time.perf_counter() - began
    return load


async def _open(port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    load, pool = Load(), _Pool(port)
    began = time.perf_counter()

    async def send(data: bytes, due: float) -> None:
        async with pool.room:
            connection = pool.take()
            load.add(await connection.exchange(data, due))
            pool.idle.append(connection)

    async with asyncio.TaskGroup() as sending:
        for number, data in _due(requests, int(rate * seconds)):
            due = began + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            sending.create_task(send(data, due))
    load.seconds = time.perf_counter() - began
    for connection in pool.idle:
        connection.close()
    return load


def _due(requests: list[bytes], count: int) -> Iterator[tuple[int, bytes]]:
    return enumerate(itertools.islice(itertools.cycle(requests), count))


class _Pool:
    """Idle connections; a request that finds none opens another one, up to a limit."""

    def __init__(self, port: int) -> None:
        self._port, self._made = port, itertools.count()
        self.idle: list[Connection] = []
        self.room = asyncio.Semaphore(_MOST_CONNECTIONS)

    def take(self) -> Connection:
        return self.idle.pop() if self.idle else Connection(self._port, source(next(self._made)))
