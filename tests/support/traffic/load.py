"""Open-loop load: requests are sent at a fixed rate, whether or not earlier ones were answered; none is repeated.

Half of them share kept-alive connections, half use a new connection each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType

import httpx

_KEPT = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0)
_FRESH = httpx.Limits(max_connections=None, max_keepalive_connections=0)
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """A request, and the status that counts as success."""

    method: str
    path: str
    expected: int = httpx.codes.OK
    headers: dict[str, str] = field(default_factory=dict)
    json: object = None
    pause: float = 0.0
    """Seconds between the first and the second half of the body; the request takes at least that long."""

    def content(self) -> bytes:
        return b"" if self.json is None else json.dumps(self.json).encode()

    async def halves(self) -> AsyncIterator[bytes]:
        content = self.content()
        yield content[: len(content) // 2]
        await asyncio.sleep(self.pause)
        yield content[len(content) // 2 :]


@dataclass(frozen=True)
class Answer:
    """How a request ended: `status` 0 means no reply; `seconds` count from its arrival."""

    request: Request
    at: float
    seconds: float
    status: int
    body: str
    """The body of a failure, or the error of the connection."""
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    @property
    def failed(self) -> bool:
        return self.status != self.request.expected

    @property
    def arrived_at(self) -> float:
        return self.at - self.seconds


class Load(threading.Thread):
    """Sends the requests of `arrival(number)`, `rate` a second, while the block runs."""

    def __init__(
        self, url: str, rate: float, arrival: Callable[[int], Request], verify: ssl.SSLContext | bool = True
    ) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self._url, self._rate, self._arrival, self._verify = url, rate, arrival, verify
        self._stopping = threading.Event()
        self._broken: Exception | None = None

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopping.set()
        self.join(_PATIENCE_SECONDS + 5)
        assert not self.is_alive(), "some requests got neither a reply nor an error"
        if self._broken:
            raise self._broken

    def run(self) -> None:
        try:
            asyncio.run(self._send())
        except Exception as error:
            self._broken = error

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failed]

    def arrived_between(self, began: float, ended: float) -> list[Answer]:
        """The answered requests that arrived between two moments of time.time()."""
        return [answer for answer in self.answers if began <= answer.arrived_at < ended]

    def recovery_seconds(self, since: float, until: float | None = None, share: float = 0.95) -> float:
        """Seconds from `since` until goodput stays at `share` of the arrivals, second by second."""
        last = min(until or float("inf"), max(answer.arrived_at for answer in self.answers))
        bad = [
            tenth / 10 for tenth in range(int((last - since - 1) * 10) + 1) if self._share(since + tenth / 10) < share
        ]
        assert not bad or bad[-1] < last - since - 1.2, f"goodput did not recover: {self.report()}"
        return bad[-1] + 0.1 if bad else 0.0

    def _share(self, began: float) -> float:
        second = self.arrived_between(began, began + 1)
        return sum(not answer.failed for answer in second) / len(second) if second else 0.0

    def report(self) -> str:
        """One line: requests, failures by kind, latencies."""
        times = sorted(answer.seconds for answer in self.answers)
        kinds = Counter(f"{a.request.method} {a.status} {a.body[:60]}".strip() for a in self.failures)
        failures = "".join(f"; {count} x {kind}" for kind, count in kinds.most_common(5))
        middle, late = (times[int(len(times) * part)] * 1000 for part in (0.5, 0.99))
        return f"{len(self.failures)} failed of {len(times)}, p50 {middle:.0f} ms, p99 {late:.0f} ms{failures}"

    async def _send(self) -> None:
        began = time.monotonic()
        timeout = httpx.Timeout(_PATIENCE_SECONDS)
        async with (
            httpx.AsyncClient(base_url=self._url, limits=_KEPT, timeout=timeout, verify=self._verify) as kept,
            httpx.AsyncClient(base_url=self._url, limits=_FRESH, timeout=timeout, verify=self._verify) as fresh,
            asyncio.TaskGroup() as sending,
        ):
            for number in itertools.count():
                if self._stopping.is_set():
                    break
                due = began + number / self._rate
                await asyncio.sleep(due - time.monotonic())
                sending.create_task(self._exchange((kept, fresh)[number % 2], self._arrival(number), due))

    async def _exchange(self, http: httpx.AsyncClient, request: Request, due: float) -> None:
        status, body, received = 0, "", httpx.Headers()
        try:
            content = request.halves() if request.pause else request.content()
            typed = {"Content-Type": "application/json", "Content-Length": str(len(request.content()))}
            headers = request.headers | (typed if request.json is not None else {})
            reply = await http.request(request.method, request.path, content=content, headers=headers)
        except httpx.TransportError as error:
            body = repr(error)
        else:
            status, received = reply.status_code, reply.headers
            body = "" if status == request.expected else reply.text
        self.answers.append(Answer(request, time.time(), time.monotonic() - due, status, body, received))
