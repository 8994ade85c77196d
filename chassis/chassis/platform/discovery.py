"""Service discovery: the addresses of the healthy instances of each called service or subset, watched in Consul.

Invariant: the last list stays in use while Consul is unavailable. An empty list right after an outage is applied only
after a delay, because a restarted agent lists its services before it has checked their health again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

EMPTY_DELAY_SECONDS = 30.0


class ServiceSource(Protocol):
    """The part of the Consul client that is needed here."""

    def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None, *, matching: str = ""
    ) -> AsyncIterator[list[dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One healthy instance; `address` is host:port."""

    id: str
    address: str


class Endpoints:
    """The healthy instances of one service, or of the subset of it that has the name, kept up to date."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._current: tuple[Endpoint, ...] = ()
        self._loaded = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._delay_empty_until = 0.0
        self._pending_empty: asyncio.TimerHandle | None = None
        self._watch: asyncio.Future[None] | None = None

    @property
    def current(self) -> tuple[Endpoint, ...]:
        """The instances that may be called now."""
        return self._current

    @property
    def loaded(self) -> bool:
        """True once Consul has answered at least once."""
        return self._loaded.is_set()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each change of the list."""
        self._callbacks.append(callback)

    async def ready(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Waits at most `timeout` seconds (None: no limit) for the first list. Raises TimeoutError."""
        await asyncio.wait_for(self._loaded.wait(), timeout)

    def kept_by(self, watch: asyncio.Future[None]) -> None:
        """Notes the task that keeps the list up to date, which `stop` ends."""
        self._watch = watch

    def stop(self) -> None:
        """Ends the watch and empties the list, so that no instance gets a further call."""
        if self._watch is not None:
            self._watch.cancel()
        self._apply(())

    def outage(self) -> None:
        """Notes that Consul is unavailable: for a while, an empty list is not applied immediately."""
        self._delay_empty_until = time.monotonic() + EMPTY_DELAY_SECONDS
        if self._pending_empty:
            # Another outage before the pending empty list was applied: its delay starts again.
            self._apply_empty_in(EMPTY_DELAY_SECONDS)

    def replace(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Applies a list from Consul."""
        self._cancel_pending()
        delay = self._delay_empty_until - time.monotonic()
        if not endpoints and self._current and delay > 0:
            log.warning("no healthy instance right after an outage, keeping the last list", target=self.name)
            self._apply_empty_in(delay)
        else:
            self._apply(endpoints)

    def _apply_empty_in(self, seconds: float) -> None:
        self._cancel_pending()
        self._pending_empty = asyncio.get_running_loop().call_later(seconds, self._apply, ())

    def _cancel_pending(self) -> None:
        if self._pending_empty:
            self._pending_empty.cancel()
            self._pending_empty = None

    def _apply(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._cancel_pending()
        changed, self._current = endpoints != self._current, endpoints
        self._loaded.set()
        if changed:
            log.info("instances changed", target=self.name, addresses=[e.address for e in endpoints])
            for callback in self._callbacks:
                callback()


class Discovery:
    """Watches the instances of services."""

    def __init__(
        self,
        consul: ServiceSource,
        supervise: Callable[[str, Callable[[], Awaitable[None]]], asyncio.Future[None]],
    ) -> None:
        self._consul = consul
        self._supervise = supervise
        self._endpoints: dict[str, Endpoints] = {}

    def endpoints(self, service: str) -> Endpoints:
        """Returns the live list of a Consul service; the first call starts to watch it, further ones share it."""
        if service not in self._endpoints:
            self._endpoints[service] = self.watch(service, service)
        return self._endpoints[service]

    def watch(self, name: str, service: str, matching: str = "") -> Endpoints:
        """Starts to watch the instances that match a filter expression of Consul ("": all), until `stop` is called."""
        endpoints = Endpoints(name)
        endpoints.kept_by(self._supervise(f"discovery {name}", lambda: self._follow(endpoints, service, matching)))
        return endpoints

    async def _follow(self, endpoints: Endpoints, service: str, matching: str) -> None:
        async for entries in self._consul.watch_service(service, endpoints.outage, matching=matching):
            endpoints.replace(tuple(sorted(map(_endpoint, entries), key=lambda e: e.id)))


def _endpoint(entry: dict[str, Any]) -> Endpoint:
    service = entry["Service"]
    return Endpoint(service["ID"], f"{service['Address'] or entry['Node']['Address']}:{service['Port']}")
