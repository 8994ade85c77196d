"""Consul on asyncio: python-consul2's API over one keep-alive httpx client, logged in by workload identity.

Invariant: a watch goes on for ever; while Consul is away its reader keeps the last value it was given, and so it does
while a policy hides the answer: "you may not see it" is not "there is nothing".
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx
import structlog
from consul import ACLPermissionDenied, ConsulException
from consul.base import Consul, HTTPClient

from chassis.backoff import backoff
from chassis.platform.identity import read_identity

log = structlog.get_logger(__name__)

T = TypeVar("T")
Query = Callable[[int | None], Awaitable[tuple[int, T]]]

AUTH_METHOD = "nomad-workloads"
_TIMEOUT_SECONDS = 5.0
_BACKOFF_SECONDS = (0.2, 2.0)
_ANSWER_AT_ONCE_SECONDS = 0.05
_FAILURES = (httpx.HTTPError, ConsulException, OSError, ValueError, KeyError, TypeError)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_WAIT = "30s"
_HIDDEN = "X-Consul-Results-Filtered-By-ACLs"


class Watcher(Protocol):
    """What settings and discovery need of Consul; `chassis.testing.FakeConsul` is another one."""

    async def read_key(self, key: str) -> bytes | None: ...

    def watch_key(self, key: str) -> AsyncIterator[bytes | None]: ...

    def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]: ...

    async def close(self) -> None: ...


class ConsulClient:
    """The agent beside this process. `identity` is the file of the workload identity; None works without a token."""

    def __init__(self, address: str, identity: Path | None = None) -> None:
        self._http = _Http(address)
        self._api = _Api(self._http)
        self._identity = identity
        self._logging_in = asyncio.Lock()

    async def login(self) -> None:
        """Trade the workload identity for an ACL token; raises ConfigurationError when there is no identity."""
        if self._identity is not None:
            self._api.token = await self._http.login(read_identity(self._identity))

    async def reachable(self) -> None:
        """Log in, waiting for a Consul that is away for as long as it takes."""
        delays = backoff(*_BACKOFF_SECONDS)
        while True:
            try:
                return await self.login()
            except _FAILURES as error:
                log.warning("consul is away, waiting", error=_describe(error))
            await asyncio.sleep(next(delays))

    async def read_key(self, key: str) -> bytes | None:
        """The value of a KV key, None when there is none; waits for a Consul that is away."""
        async for value in self.watch_key(key):
            return value
        return None

    def watch_key(self, key: str) -> AsyncIterator[bytes | None]:
        """The value of a KV key now and after each change."""

        async def query(index: int | None) -> tuple[int, bytes | None]:
            found, entry = await self._api.kv.get(key, index=index, wait=_WAIT)
            return int(found), None if entry is None else entry["Value"] or b""

        return blocking(f"kv {key}", self._logged_in(query))

    def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The passing instances of a service now and after each change, as Consul's health API gives them."""

        async def query(index: int | None) -> tuple[int, list[dict[str, Any]]]:
            found, nodes = await self._api.health.service(service, index=index, wait=_WAIT, passing=True)
            if index and not nodes:
                # Only a question without an index is told that a policy hides something.
                _, nodes = await self._api.health.service(service, passing=True)
            return int(found), nodes

        return blocking(f"service {service}", self._logged_in(query), on_outage)

    async def close(self) -> None:
        """Give the token back and close the connections; a Consul that is away is not waited for."""
        if self._api.token:
            try:
                await asyncio.wait_for(self._http.logout(self._api.token), 1.0)
            except (TimeoutError, *_FAILURES) as error:
                log.debug("consul logout failed", error=_describe(error))
        await self._http.close()

    def _logged_in(self, query: Query[T]) -> Query[T]:
        async def again(index: int | None) -> tuple[int, T]:
            used = self._api.token
            try:
                return await query(index)
            except ACLPermissionDenied:
                async with self._logging_in:
                    if self._api.token == used:
                        await self.login()
                return await query(index)

        return again


async def blocking(name: str, query: Query[T], on_outage: Callable[[], None] | None = None) -> AsyncIterator[T]:
    """Repeat a Consul blocking query for ever; yields the first value and then each one that differs.

    `query(index)` returns Consul's index and the value. Errors are retried with growing pauses; `on_outage` is
    called at each.
    """
    index, delays, failing = 0, backoff(*_BACKOFF_SECONDS), False
    last: list[T] = []
    while True:
        asked = time.monotonic()
        try:
            found, value = await query(index or None)
        except _FAILURES as error:
            if not failing:
                log.warning("consul watch failed, the last value stays", watch=name, error=_describe(error))
            failing = True
            _ = on_outage and on_outage()
            await asyncio.sleep(next(delays))
            continue
        index, delays, failing = next_index(index, found), backoff(*_BACKOFF_SECONDS), False
        if last != [value]:
            last = [value]
            yield value
        elif time.monotonic() - asked < _ANSWER_AT_ONCE_SECONDS:
            await asyncio.sleep(_BACKOFF_SECONDS[0])


def next_index(index: int, found: int) -> int:
    """The index to ask with next: at least 1, and 0 (answer at once) after Consul's own went backwards."""
    return 0 if found < index else max(found, 1)


def trusted(*urls: str) -> ssl.SSLContext:
    """Who certifies the servers at `urls`, for httpx. With no https among them nobody: that saves 2 MB of names."""
    if any(url.startswith("https:") for url in urls):
        return httpx.create_ssl_context(trust_env=False)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Answer(NamedTuple):
    code: int
    headers: httpx.Headers
    body: str
    content: bytes


class _Http(HTTPClient):  # type: ignore[misc]
    """python-consul2's transport on one httpx client; each method returns an awaitable of the callback's result."""

    def __init__(self, address: str) -> None:
        self._client = httpx.AsyncClient(base_url=address, trust_env=False, limits=_LIMITS, verify=trusted(address))

    async def _send(self, method: str, callback: Callable[[_Answer], Any], path: str, **request: Any) -> Any:
        response = await self._client.request(method, path, **request)
        if response.headers.get(_HIDDEN) == "true":
            raise ConsulException(f"a policy hides what {path} would tell")
        return callback(_Answer(response.status_code, response.headers, response.text, response.content))

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        waits = dict(params or ()).get("wait")
        return self._send("GET", callback, path, params=params, headers=headers, timeout=_patience(waits))

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        return self._send("PUT", callback, path, params=params, content=data, headers=headers)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        return self._send("POST", callback, path, params=params, content=data, headers=headers)

    def delete(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        return self._send("DELETE", callback, path, params=params, headers=headers)

    async def login(self, identity: str) -> str:
        ask = json.dumps({"AuthMethod": AUTH_METHOD, "BearerToken": identity})
        return str(json.loads(await self.post(_body, "/v1/acl/login", data=ask))["SecretID"])

    async def logout(self, token: str) -> None:
        await self.post(_body, "/v1/acl/logout", headers={"X-Consul-Token": token})

    async def close(self) -> None:
        await self._client.aclose()


class _Api(Consul):  # type: ignore[misc]
    def __init__(self, http: _Http) -> None:
        self._http = http
        super().__init__()
        # The library would prefer a CONSUL_HTTP_TOKEN of the environment, which is nobody's identity.
        self.token: str | None = None

    def http_connect(self, *_args: Any, **_kwargs: Any) -> _Http:
        return self._http


def _body(answer: _Answer) -> str:
    if answer.code >= 400:
        raise ConsulException(f"{answer.code} {answer.body[:200]}")
    return answer.body


def _patience(wait: str | None) -> httpx.Timeout:
    """Consul adds up to a sixteenth to a wait, so an answer is late only after that."""
    longest = _TIMEOUT_SECONDS + (0 if wait is None else float(wait.rstrip("s")) * 17 / 16)
    return httpx.Timeout(_TIMEOUT_SECONDS, read=longest)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
