"""Watches what the gateway depends on: Consul, Vault, the token keys and the instances of the called services.

Invariant: `started` becomes true once the token keys and the addresses of all called services were read, and never
becomes false again. A version that cannot reach Vault or Consul therefore never replaces a working one, while a later
outage only degrades the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from chassis.calls.client import Channel
from chassis.platform.discovery import Endpoints
from chassis.process import Process
from gateway.auth.access_tokens import AccessTokenVerifier
from gateway.settings import Settings

_PROBE_TIMEOUT_SECONDS = 1.0
_UNKNOWN = "not probed yet"


class DependencyHealth:
    """The state of each dependency, as of the last probe."""

    def __init__(
        self, process: Process[Settings], access_tokens: AccessTokenVerifier, channels: Mapping[str, Channel]
    ) -> None:
        self._process = process
        self._access_tokens = access_tokens
        self._channels = channels
        self._endpoints = {name: process.discovery.endpoints(name) for name in channels}
        self._agents = {"consul": _UNKNOWN, "vault": _UNKNOWN}

    @property
    def started(self) -> bool:
        """True once everything was read that no request can do without."""
        return self._access_tokens.has_keys and all(e.loaded for e in self._endpoints.values())

    @property
    def draining(self) -> bool:
        """True once the process is stopping."""
        return self._process.stopping.is_set()

    async def until_draining(self) -> None:
        """Waits until the process is stopping."""
        await self._process.stopping.wait()

    def dependencies(self) -> dict[str, str]:
        """Returns the state of each dependency: "ok" or the reason why it is not."""
        keys = {} if self._access_tokens.has_keys else {"token keys": "none was read yet"}
        return {**self._agents, **keys, **{name: _state_of(e) for name, e in self._endpoints.items()}}

    def breakers(self) -> dict[str, str]:
        """Returns the state of each called service's breaker: closed, open or half-open."""
        return {name: channel.breaker.state for name, channel in self._channels.items()}

    async def probe_agents(self) -> None:
        """Probes Consul and Vault repeatedly until it is cancelled."""
        environment = self._process.environment
        urls = {
            "consul": f"{environment.consul_http_addr}/v1/status/leader",
            "vault": f"{environment.vault_addr}/v1/sys/health?standbyok=true",
        }
        async with httpx.AsyncClient(timeout=_PROBE_TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                self._agents = {name: await _probe(client, url) for name, url in urls.items()}
                await asyncio.sleep(self._process.settings.value.dependency_probe_seconds)


def _state_of(endpoints: Endpoints) -> str:
    if endpoints.current:
        return "ok"
    return "no healthy instance" if endpoints.loaded else "addresses not read from consul yet"


async def _probe(client: httpx.AsyncClient, url: str) -> str:
    try:
        response = await client.get(url)
    except httpx.HTTPError as error:
        return f"unavailable ({type(error).__name__})"
    if response.text.strip() == '""':
        return "has no leader"
    return "ok" if response.is_success else f"answers {response.status_code}"
