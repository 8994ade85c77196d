"""Consul client for asyncio: reads and watches KV keys and services, logged in with the Nomad workload identity.

Invariant: a watch never ends. It yields nothing while Consul is unavailable or an ACL policy hides the result, so its
reader keeps the last value: a denied read does not mean that the key does not exist, nor that the token has ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import structlog
from consul import ACLPermissionDenied, ConsulException

from chassis.backoff import backoff
from chassis.errors import ConfigurationError
from chassis.platform.consul_http import ConsulApi, HttpTransport
from chassis.platform.identity import read_identity
from chassis.platform.single_flight import SingleFlight
from chassis.platform.validity import Validity

log = structlog.get_logger(__name__)

T = TypeVar("T")
Query = Callable[[int | None], Awaitable[tuple[int, T]]]

_BACKOFF_SECONDS = (0.2, 2.0)
_LOGOUT_SECONDS = 1.0
_IMMEDIATE_SECONDS = 0.05
_FAILURES = (httpx.HTTPError, ConsulException, OSError, ValueError, KeyError, TypeError)
_WAIT = "30s"


class ConsulClient:
    """Client of the local Consul agent, logged in with the workload identity in file `identity`, if given.

    The authorities in `ca_file` (PEM) are those that an https address is trusted by.
    """

    def __init__(self, address: str, identity: Path | None = None, ca_file: Path | None = None) -> None:
        self._http = HttpTransport(address, ca_file)
        self._api = ConsulApi(self._http)
        self._identity = identity
        self._validity = Validity.from_now(math.inf)
        self._shared_login = SingleFlight(self.login, *_BACKOFF_SECONDS)

    async def login(self) -> None:
        """Exchanges the workload identity for an ACL token. Raises ConfigurationError if the file cannot be read."""
        if self._identity is not None:
            began = Validity.from_now(math.inf)
            self._api.token, seconds = await self._http.login(read_identity(self._identity))
            self._validity = replace(began, seconds=seconds)

    async def connect(self) -> None:
        """Logs in, and retries until Consul answers."""
        for delay in backoff(*_BACKOFF_SECONDS):
            try:
                await self.login()
                break
            except _FAILURES as error:
                log.warning("consul unavailable, retrying the login", error=_describe(error))
            await asyncio.sleep(delay)

    async def read_key(self, key: str) -> bytes | None:
        """Returns the value of a KV key, None if the key does not exist. Retries until Consul answers."""
        async for value in self.watch_key(key):
            return value
        return None

    def watch_key(self, key: str) -> AsyncIterator[bytes | None]:
        """Yields the current value of a KV key, then each new value; None while the key does not exist."""

        async def query(index: int | None) -> tuple[int, bytes | None]:
            new_index, entry = await self._api.kv.get(key, index=index, wait=_WAIT)
            return int(new_index), None if entry is None else entry["Value"] or b""

        return watch(f"kv {key}", self._with_login(query))

    def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None, *, matching: str = ""
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yields the passing instances of a service, then each changed list, in the form of Consul's health API.

        `matching` is a filter expression of Consul, such as `Service.Meta.version == "2"`; "" matches all instances.
        """

        async def query(index: int | None) -> tuple[int, list[dict[str, Any]]]:
            new_index, nodes = await self._api.passing(service, matching, index, _WAIT)
            if index and not nodes:
                # Consul reports that a policy hides something only for a query without an index.
                _, nodes = await self._api.passing(service, matching, None, _WAIT)
            return new_index, nodes

        name = f"service {service} where {matching}" if matching else f"service {service}"
        return watch(name, self._with_login(query), on_outage)

    def watch_discovery_chain(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the traffic rules of a service as Consul compiles them, then each change, in the form of its API."""
        query = self._with_login(lambda index: self._api.compiled_chain(service, index, _WAIT))
        return watch(f"discovery chain {service}", query, on_outage)

    def watch_roots(self) -> AsyncIterator[dict[str, Any]]:
        """Yields trust domain and roots of the mesh, then each change, in the form of Consul's agent API."""
        return watch("mesh roots", self._with_login(lambda index: self._api.mesh_roots(index, _WAIT)))

    def watch_intentions(self, service: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yields the intentions of a destination, then each change, in the form of Consul's API."""
        query = self._with_login(lambda index: self._api.intentions(service, index, _WAIT))
        return watch(f"intentions {service}", query)

    async def close(self) -> None:
        """Revokes the token and closes the connections; gives up on the revocation after a second."""
        if self._api.token:
            try:
                await asyncio.wait_for(self._http.logout(self._api.token), _LOGOUT_SECONDS)
            except (TimeoutError, *_FAILURES) as error:
                log.debug("consul logout failed", error=_describe(error))
        await self._http.close()

    def _with_login(self, query: Query[T]) -> Query[T]:
        """Wraps a query so that it logs in again, once for all concurrent queries, when its token ends."""

        async def retried(index: int | None) -> tuple[int, T]:
            await self._renew()
            used = self._api.token
            try:
                return await query(index)
            except ACLPermissionDenied:
                # Consul answers 403 both to an unknown token and to a request that a policy denies.
                if self._api.token == used:
                    if used is not None and await self._http.is_known(used):
                        raise
                    await self._shared_login()
                return await query(index)

        return retried

    async def _renew(self) -> None:
        """Logs in again when half of the token's time is over, so that it outlasts an outage of Nomad or Consul."""
        if self._validity.left() >= self._validity.seconds / 2:
            return
        try:
            await self._shared_login()
        except (ConfigurationError, *_FAILURES) as error:
            log.info("consul token not renewed", error=_describe(error))


async def watch(name: str, query: Query[T], on_outage: Callable[[], None] | None = None) -> AsyncIterator[T]:
    """Repeats a Consul blocking query; yields the first value, then each value that differs from the one before.

    `query(index)` returns Consul's index and the value. A failed query calls `on_outage` and is retried with backoff.
    """
    index, delays, failing = 0, backoff(*_BACKOFF_SECONDS), False
    last: list[T] = []
    while True:
        started = time.monotonic()
        try:
            new_index, value = await query(index or None)
        except _FAILURES as error:
            if not failing:
                log.warning("consul watch failed, keeping the last value", watch=name, error=_describe(error))
            failing = True
            _ = on_outage and on_outage()
            await asyncio.sleep(next(delays))
            continue
        index, delays, failing = next_index(index, new_index), backoff(*_BACKOFF_SECONDS), False
        if last != [value]:
            last = [value]
            yield value
        elif time.monotonic() - started < _IMMEDIATE_SECONDS:
            # Consul may return immediately without a change; the pause prevents a busy loop.
            await asyncio.sleep(_BACKOFF_SECONDS[0])


def next_index(index: int, new_index: int) -> int:
    """Returns the index for the next query: at least 1, or 0 (do not block) after Consul's index went backwards."""
    return 0 if new_index < index else max(new_index, 1)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
