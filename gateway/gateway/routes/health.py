"""Routes that say how the process is, and the loop that finds out what it depends on.

Invariant: not ready before Vault has told a key and Consul where each service is, or a new version that is told nothing
would take the place of one that was; from then on, what is away degrades it, and only its own end makes it unready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
from sanic import Blueprint, HTTPResponse, Request

from chassis.calls.client import Channel
from chassis.platform.consul import trusted
from chassis.platform.discovery import Endpoints
from chassis.process import Process
from gateway.auth.access_tokens import Tokens
from gateway.auth.sessions import backend
from gateway.http.serializers import Readiness, answered
from gateway.settings import Settings

routes = Blueprint("health")

_PROBE_SECONDS = 1.0
_SERVING = {"ready", "degraded"}
_NOT_YET = "not looked at yet"


@routes.get("/livez")
async def livez(_: Request) -> HTTPResponse:
    """Tell that the process answers."""
    return answered({"status": "alive"})


@routes.get("/readyz")
async def readyz(request: Request) -> HTTPResponse:
    """Tell whether to send requests here, and the state of each dependency."""
    health = backend(request).health
    body: Readiness = {
        "status": "ready",
        "dependencies": dict(health.dependencies()),
        "breakers": dict(health.breakers()),
    }
    if set(body["dependencies"].values()) != {"ok"} or set(body["breakers"].values()) != {"closed"}:
        body["status"] = "degraded"
    if not health.started:
        body["status"] = "starting"
    if health.draining:
        body["status"] = "draining"
    return answered(body, 200 if body["status"] in _SERVING else 503)


class Dependencies:
    """The state of what the gateway needs, as of the last look."""

    def __init__(self, process: Process[Settings], tokens: Tokens, channels: Mapping[str, Channel]) -> None:
        self._process = process
        self._tokens = tokens
        self._channels = channels
        self._endpoints = {name: process.discovery.endpoints(name) for name in channels}
        self._agents = {"consul": _NOT_YET, "vault": _NOT_YET}

    @property
    def started(self) -> bool:
        """Whether everything was told once that no call can do without."""
        return self._tokens.known and all(e.known for e in self._endpoints.values())

    @property
    def draining(self) -> bool:
        return self._process.stopping.is_set()

    async def until_draining(self) -> None:
        """Return when the process was told to stop."""
        await self._process.stopping.wait()

    def dependencies(self) -> dict[str, str]:
        """Each one's state: "ok" or what is wrong."""
        keys = {} if self._tokens.known else {"token keys": "none was read yet"}
        return {**self._agents, **keys, **{name: _found(e) for name, e in self._endpoints.items()}}

    def breakers(self) -> dict[str, str]:
        """Each called service's breaker: closed, open or half-open."""
        return {name: channel.breaker.state for name, channel in self._channels.items()}

    async def follow(self) -> None:
        """Look at the agents again and again, for ever."""
        where = self._process.environment
        urls = {
            "consul": f"{where.consul_http_addr}/v1/status/leader",
            "vault": f"{where.vault_addr}/v1/sys/health?standbyok=true",
        }
        verify = trusted(*urls.values())
        async with httpx.AsyncClient(timeout=_PROBE_SECONDS, trust_env=False, verify=verify) as client:
            while True:
                self._agents = {name: await _state(client, url) for name, url in urls.items()}
                await asyncio.sleep(self._process.settings.value.probe_seconds)


def _found(endpoints: Endpoints) -> str:
    if endpoints.current:
        return "ok"
    return "no healthy instance" if endpoints.known else "consul has not told yet where it is"


async def _state(client: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await client.get(url)
    except httpx.HTTPError as error:
        return f"away ({type(error).__name__})"
    if answer.text.strip() == '""':
        return "has no leader"
    return "ok" if answer.is_success else f"answers {answer.status_code}"
