"""Where the healthy instances of a service are, followed by blocking query.

Invariant: the last known set survives Consul being away, and an empty answer right after an outage is not believed at
once: a restarted agent knows its services before it has checked them again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

DISTRUST_SECONDS = 30.0


class ServiceSource(Protocol):
    """What discovery needs of Consul."""

    def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One healthy instance; `address` is host:port."""

    id: str
    address: str


class Endpoints:
    """The healthy instances of one service, live."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._current: tuple[Endpoint, ...] = ()
        self._known = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._distrust_until = 0.0
        self._emptying: asyncio.TimerHandle | None = None

    @property
    def current(self) -> tuple[Endpoint, ...]:
        """The instances to call now."""
        return self._current

    @property
    def known(self) -> bool:
        """Whether Consul has answered at all."""
        return self._known.is_set()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after the set has changed."""
        self._callbacks.append(callback)

    async def ready(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait at most `timeout` seconds (None: for ever) for Consul's first answer; raises TimeoutError."""
        await asyncio.wait_for(self._known.wait(), timeout)

    def distrust(self) -> None:
        """Do not believe an empty answer for a while: Consul has just been away."""
        self._distrust_until = time.monotonic() + DISTRUST_SECONDS
        if self._emptying:
            # Away once more before the last empty answer was believed: that has to wait anew.
            self._empty_later(DISTRUST_SECONDS)

    def replace(self, found: tuple[Endpoint, ...]) -> None:
        """Take over what Consul answered."""
        self._keep()
        wait = self._distrust_until - time.monotonic()
        if not found and self._current and wait > 0:
            log.warning("no healthy instance right after an outage, the last known stay", of=self.service)
            self._empty_later(wait)
        else:
            self._set(found)

    def _empty_later(self, seconds: float) -> None:
        self._keep()
        self._emptying = asyncio.get_running_loop().call_later(seconds, self._set, ())

    def _keep(self) -> None:
        if self._emptying:
            self._emptying.cancel()
            self._emptying = None

    def _set(self, found: tuple[Endpoint, ...]) -> None:
        self._keep()
        changed, self._current = found != self._current, found
        self._known.set()
        if changed:
            log.info("instances changed", of=self.service, addresses=[e.address for e in found])
            for callback in self._callbacks:
                callback()


class Discovery:
    """One watch for each service asked for, shared by all who ask."""

    def __init__(
        self, consul: ServiceSource, supervise: Callable[[str, Callable[[], Awaitable[None]]], object]
    ) -> None:
        self._consul = consul
        self._supervise = supervise
        self._endpoints: dict[str, Endpoints] = {}

    def endpoints(self, service: str) -> Endpoints:
        """The live set of a Consul service; the first call begins to watch it."""
        if service not in self._endpoints:
            followed = self._endpoints[service] = Endpoints(service)
            self._supervise(f"discovery {service}", lambda: self._follow(followed))
        return self._endpoints[service]

    async def _follow(self, endpoints: Endpoints) -> None:
        async for nodes in self._consul.watch_service(endpoints.service, endpoints.distrust):
            endpoints.replace(tuple(sorted(map(_endpoint, nodes), key=lambda e: e.id)))


def _endpoint(entry: dict[str, Any]) -> Endpoint:
    service = entry["Service"]
    return Endpoint(service["ID"], f"{service['Address'] or entry['Node']['Address']}:{service['Port']}")
