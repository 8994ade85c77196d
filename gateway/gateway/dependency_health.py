"""Monitors the dependencies of the gateway: Consul, Vault, the token keys and the instances of the called services.

Invariant: the process is ready once the token keys and the addresses of all called services have been read, and stays
ready until it stops. So a version that cannot reach Vault or Consul never replaces a working one, and a later outage
only degrades the gateway.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx

from chassis.auth.access_token_verifier import AccessTokenVerifier
from chassis.calls.client import Channel
from chassis.process import Process
from gateway.settings import Settings
from shop_contract.access_tokens import Principal

_PROBE_TIMEOUT_SECONDS = 1.0
_UNKNOWN = "not probed yet"


class DependencyHealth:
    """The state of each dependency, as of the last probe."""

    def __init__(
        self,
        process: Process[Settings],
        access_tokens: AccessTokenVerifier[Principal],
        channels: Mapping[str, Channel],
    ) -> None:
        self._process = process
        self._access_tokens = access_tokens
        self._channels = channels
        self._agents = {"consul": _UNKNOWN, "vault": _UNKNOWN}
        process.add_readiness("token keys", access_tokens.readiness)
        for name, channel in channels.items():
            process.add_readiness(name, channel.readiness)

    async def started(self) -> bool:
        """True if every readiness probe of the process passes."""
        return set((await self._process.readiness()).values()) == {"ok"}

    @property
    def draining(self) -> bool:
        """True once the process is stopping."""
        return self._process.stopping.is_set()

    async def until_draining(self) -> None:
        """Waits until the process is stopping."""
        await self._process.stopping.wait()

    def dependencies(self) -> dict[str, str]:
        """Returns the state of each dependency: "ok" or the reason why it is not."""
        problem = self._access_tokens.readiness()
        keys = {"token keys": problem} if problem else {}
        return {**self._agents, **keys, **{name: channel.dependency() for name, channel in self._channels.items()}}

    def breakers(self) -> dict[str, str]:
        """Returns the state of the breaker of each called service, and subset of one: closed, open or half-open."""
        return {name: state for channel in self._channels.values() for name, state in channel.breakers().items()}

    async def probe_agents(self) -> None:
        """Probes Consul and Vault repeatedly until it is cancelled."""
        environment = self._process.environment
        async with (
            _client(environment.consul_http_addr, environment.consul_cacert) as consul,
            _client(environment.vault_addr, environment.vault_cacert) as vault,
        ):
            while True:
                self._agents = {
                    "consul": await _probe(consul, "/v1/status/leader"),
                    "vault": await _probe(vault, "/v1/sys/health?standbyok=true"),
                }
                await asyncio.sleep(self._process.settings.value.dependency_probe_seconds)


def _client(address: str, ca_file: Path | None) -> httpx.AsyncClient:
    trust = ssl.create_default_context(cafile=ca_file)
    return httpx.AsyncClient(base_url=address, timeout=_PROBE_TIMEOUT_SECONDS, trust_env=False, verify=trust)


async def _probe(client: httpx.AsyncClient, url: str) -> str:
    try:
        response = await client.get(url)
    except httpx.HTTPError as error:
        return f"unavailable ({type(error).__name__})"
    if response.text.strip() == '""':
        return "has no leader"
    return "ok" if response.is_success else f"answers {response.status_code}"
