"""Runs python-consul2 on asyncio: its blocking HTTP transport is replaced by one keep-alive httpx client."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from consul import ConsulException
from consul.base import CB, Consul, HTTPClient  # fragile: consul-http-client

AUTH_METHOD = "nomad-workloads"
_TIMEOUT_SECONDS = 5.0
# A watch holds a connection for its whole wait, so their number must not be limited.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_FILTERED = "X-Consul-Results-Filtered-By-ACLs"


class Response(NamedTuple):
    """A response in the form that python-consul2's callbacks read."""

    code: int
    headers: httpx.Headers
    body: str
    content: bytes


class HttpTransport(HTTPClient):  # type: ignore[misc]
    """python-consul2's transport on httpx; each method returns an awaitable of the callback's result."""

    def __init__(self, address: str, ca_file: Path | None = None) -> None:
        trust = ssl.create_default_context(cafile=ca_file)
        self._client = httpx.AsyncClient(base_url=address, trust_env=False, limits=_LIMITS, verify=trust)

    def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        wait = dict(params or ()).get("wait")
        return self._send("GET", callback, path, params=params, headers=headers, timeout=_timeout(wait))

    def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        return self._send("PUT", callback, path, params=params, content=data, headers=headers)

    def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None, **_: Any) -> Any:
        return self._send("POST", callback, path, params=params, content=data, headers=headers)

    def delete(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        return self._send("DELETE", callback, path, params=params, headers=headers)

    async def login(self, identity: str) -> tuple[str, float]:
        """Exchanges a workload identity for an ACL token; returns it and the seconds until it ends."""
        body = json.dumps({"AuthMethod": AUTH_METHOD, "BearerToken": identity})
        token = json.loads(await self.post(_body, "/v1/acl/login", data=body))
        return str(token["SecretID"]), _duration(token)

    async def is_known(self, token: str) -> bool:
        """Returns whether Consul knows an ACL token: one that has ended, or was deleted, is unknown."""
        return bool(await self.get(_is_success, "/v1/acl/token/self", headers={"X-Consul-Token": token}))

    async def logout(self, token: str) -> None:
        """Revokes an ACL token."""
        await self.post(_body, "/v1/acl/logout", headers={"X-Consul-Token": token})

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _send(self, method: str, callback: Callable[[Response], Any], path: str, **request: Any) -> Any:
        response = await self._client.request(method, path, **request)
        if response.headers.get(_FILTERED) == "true":
            raise ConsulException(f"an ACL policy hides results of {path}")
        return callback(Response(response.status_code, response.headers, response.text, response.content))


class ConsulApi(Consul):  # type: ignore[misc]
    """python-consul2's API on an `HttpTransport`."""

    def __init__(self, http: HttpTransport) -> None:
        self._http = http
        super().__init__()
        # The library takes CONSUL_HTTP_TOKEN from the environment, but a process only uses the token of its login.
        self.token: str | None = None

    async def mesh_roots(self, index: int | None, wait: str) -> tuple[int, dict[str, Any]]:
        """Returns Consul's index, and trust domain and roots of the mesh; the library has no blocking query for it."""
        new_index, found = await self._read("/v1/agent/connect/ca/roots", index, wait)
        return new_index, dict(found)

    async def intentions(self, destination: str, index: int | None, wait: str) -> tuple[int, list[dict[str, Any]]]:
        """Returns Consul's index, and the intentions of a destination, highest precedence first."""
        query = {"by": "destination", "name": destination}
        new_index, found = await self._read("/v1/connect/intentions/match", index, wait, query)
        return new_index, found.get(destination) or []

    async def passing(
        self, service: str, matching: str, index: int | None, wait: str
    ) -> tuple[int, list[dict[str, Any]]]:
        """Returns Consul's index, and the passing instances that match; the library has no filter expressions."""
        query = {"passing": "1"} | ({"filter": matching} if matching else {})
        return await self._read(f"/v1/health/service/{service}", index, wait, query)  # type: ignore[no-any-return]

    async def compiled_chain(self, service: str, index: int | None, wait: str) -> tuple[int, dict[str, Any]]:
        """Returns Consul's index, and the compiled discovery chain of a service."""
        new_index, found = await self._read(f"/v1/discovery-chain/{service}", index, wait)
        return new_index, dict(found["Chain"])

    async def _read(self, path: str, index: int | None, wait: str, query: Mapping[str, str] | None = None) -> Any:
        params = [*(query or {}).items(), *([("index", str(index)), ("wait", wait)] if index else [])]
        headers = {"X-Consul-Token": self.token} if self.token else {}
        new_index, found = await self._http.get(CB.json(index=True), path, params, headers)
        return int(new_index), found

    def http_connect(self, *_args: Any, **_kwargs: Any) -> HttpTransport:
        """Returns the transport, in place of the library's own one."""
        return self._http


def _body(response: Response) -> str:
    if response.code >= 400:
        raise ConsulException(f"{response.code} {response.body[:200]}")
    return response.body


def _is_success(response: Response) -> bool:
    if response.code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return False
    return bool(_body(response))


def _duration(token: dict[str, Any]) -> float:
    """Returns the seconds from creation to expiration; infinite for a token that never ends."""
    if not token.get("ExpirationTime"):
        return math.inf
    ends, begins = (datetime.fromisoformat(token[name]) for name in ("ExpirationTime", "CreateTime"))
    return (ends - begins).total_seconds()


def _timeout(wait: str | None) -> httpx.Timeout:
    """Returns a read timeout above the wait of a blocking query, to which Consul adds up to a sixteenth."""
    longest = _TIMEOUT_SECONDS + (0 if wait is None else float(wait.rstrip("s")) * 17 / 16)
    return httpx.Timeout(_TIMEOUT_SECONDS, read=longest)
