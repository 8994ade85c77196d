"""Open-loop load: requests leave at a fixed rate, whether or not earlier ones were answered; none is repeated.

A latency counts from the moment at which its request was due, so a system that falls behind does not look fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx

from stack.load.load_figures import Figures, Summary
from stack.load.mix import Call, Mix

_TIMEOUT_SECONDS = 15.0
_LATE_SECONDS = 0.05
MOST_WAITING = 2_000
NOT_SENT = f"not sent: {MOST_WAITING} requests are waiting"
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=5.0)


class OpenLoop:
    """Sends the requests of a mix; `second` has the figures since the last call of `take_second`."""

    def __init__(self, url: str, mix: Mix, rate: float) -> None:
        self._url, self._mix, self._rate = url, mix, rate
        self._second = Figures()
        self._tasks: set[asyncio.Task[None]] = set()
        self.summary = Summary()

    @property
    def waiting(self) -> int:
        """How many requests are not answered yet."""
        return len(self._tasks)

    def take_second(self) -> Figures:
        """Returns the figures since the last call."""
        taken, self._second = self._second, Figures()
        return taken

    async def run(self, stopping: asyncio.Event, report: Callable[[], None]) -> None:
        """Sends until `stopping`, calls `report` every second, then waits for the answers."""
        reporting = asyncio.create_task(_every_second(report))
        try:
            async with httpx.AsyncClient(
                base_url=self._url, limits=_LIMITS, timeout=_TIMEOUT_SECONDS, trust_env=False
            ) as http:
                await self._send(http, stopping)
                if self._tasks:
                    await asyncio.wait(self._tasks)
        finally:
            reporting.cancel()

    async def _send(self, http: httpx.AsyncClient, stopping: asyncio.Event) -> None:
        began, number = time.monotonic(), 0
        while not stopping.is_set():
            due = began + number / self._rate
            number += 1
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._start(http, self._mix.next(), due)
            if wait <= 0:
                await asyncio.sleep(0)

    def _start(self, http: httpx.AsyncClient, call: Call, due: float) -> None:
        self._second.sent += 1
        self.summary.of(call.kind).sent += 1
        self.summary.late += time.monotonic() - due > _LATE_SECONDS
        if len(self._tasks) >= MOST_WAITING:
            self._answered(call, due, NOT_SENT)
            return
        task = asyncio.create_task(self._exchange(http, call, due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, http: httpx.AsyncClient, call: Call, due: float) -> None:
        try:
            reply = await http.request(call.method, call.path, headers=call.headers, json=call.json)
        except httpx.TransportError as error:
            self._answered(call, due, type(error).__name__)
            return
        if reply.status_code != call.expected:
            self._answered(call, due, problem(reply))
            return
        self._answered(call, due, None)
        if call.learn:
            call.learn(reply.json())

    def _answered(self, call: Call, due: float, error: str | None) -> None:
        seconds = time.monotonic() - due
        self._second.answered(seconds, error)
        self.summary.of(call.kind).answered(seconds, error)


def problem(reply: httpx.Response) -> str:
    """Returns the status and the type of a problem (RFC 9457), such as "503 overloaded"."""
    try:
        kind = str(reply.json()["type"]).rpartition("/")[2]
    except (ValueError, KeyError, TypeError):
        kind = "without a problem"
    return f"{reply.status_code} {kind}"


async def _every_second(report: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(1)
        report()
