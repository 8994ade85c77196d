"""Fakes for unit tests: a Consul in memory, and a Process that needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from chassis.platform.consul import ConsulClient
from chassis.process import Process
from chassis.settings import Environment, Live, ProcessSettings

K = TypeVar("K", bound=ProcessSettings)


class FakeConsul:
    """Keeps KV, the health of services, their traffic rules, and roots and intentions of the mesh in memory.

    Change them with `put`, `remove`, `register`, `route`, `trust` and `intend`.
    """

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._services: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._chains: dict[str, dict[str, Any]] = {}
        self._roots: dict[str, Any] | None = None
        self._intentions: dict[str, list[dict[str, Any]]] = {}
        self._changed = asyncio.Event()

    def put(self, key: str, value: str | bytes) -> None:
        """Writes a KV key."""
        self._keys[key] = value.encode() if isinstance(value, str) else value
        self._notify()

    def remove(self, key: str) -> None:
        """Deletes a KV key."""
        self._keys.pop(key, None)
        self._notify()

    def register(self, service: str, *addresses: str, matching: str = "") -> None:
        """Replaces the healthy instances of a service by these host:port addresses, which are their ids too.

        With `matching` they are those that match this filter expression, which is not evaluated.
        """
        self._services[service, matching] = [_node(address) for address in addresses]
        self._notify()

    def route(self, service: str, chain: dict[str, Any]) -> None:
        """Replaces the discovery chain of a service, in the form of Consul's API."""
        self._chains[service] = chain
        self._notify()

    def trust(self, roots: dict[str, Any]) -> None:
        """Replaces trust domain and roots of the mesh, in the form of Consul's API."""
        self._roots = roots
        self._notify()

    def intend(self, service: str, *intentions: dict[str, Any]) -> None:
        """Replaces the intentions of a destination, in the form of Consul's API."""
        self._intentions[service] = list(intentions)
        self._notify()

    async def connect(self) -> None:
        """See ConsulClient."""

    async def read_key(self, key: str) -> bytes | None:
        """See ConsulClient."""
        return self._keys.get(key)

    async def watch_key(self, key: str) -> AsyncIterator[bytes | None]:
        """See ConsulClient."""
        async for value in self._watch(lambda: self._keys.get(key)):
            yield value

    async def watch_service(
        self,
        service: str,
        on_outage: Callable[[], None] | None = None,  # noqa: ARG002
        *,
        matching: str = "",
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """See ConsulClient."""
        async for nodes in self._watch(lambda: self._services.get((service, matching), [])):
            yield nodes

    async def watch_discovery_chain(
        self,
        service: str,
        on_outage: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> AsyncIterator[dict[str, Any]]:
        """See ConsulClient. The chain of a service without rules is the one that Consul compiles."""
        async for chain in self._watch(lambda: self._chains.get(service) or default_chain(service)):
            yield chain

    async def watch_roots(self) -> AsyncIterator[dict[str, Any]]:
        """See ConsulClient. Yields nothing before there are roots."""
        async for roots in self._watch(lambda: self._roots):
            if roots is not None:
                yield roots

    async def watch_intentions(self, service: str) -> AsyncIterator[list[dict[str, Any]]]:
        """See ConsulClient. Yields nothing before there are intentions, as while Consul is away."""
        async for intentions in self._watch(lambda: self._intentions.get(service)):
            if intentions is not None:
                yield intentions

    async def close(self) -> None:
        """See ConsulClient."""

    async def _watch(self, read: Callable[[], Any]) -> AsyncIterator[Any]:
        last: list[Any] = []
        while True:
            changed, value = self._changed, read()
            if last != [value]:
                last = [value]
                yield value
            await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def default_chain(service: str) -> dict[str, Any]:
    """Returns the discovery chain that Consul compiles for a service without traffic rules."""
    target = f"{service}.default.default.dc1"
    node = f"resolver:{target}"
    resolver = {"Default": True, "ConnectTimeout": "5s", "Target": target}
    return {
        "ServiceName": service,
        "Datacenter": "dc1",
        "Default": True,
        "StartNode": node,
        "Nodes": {node: {"Type": "resolver", "Name": target, "Resolver": resolver}},
        "Targets": {target: {"ID": target, "Service": service, "Datacenter": "dc1", "Subset": {}}},
    }


def environment(**changes: Any) -> Environment:
    """Returns an Environment with addresses at which no server listens."""
    values: dict[str, Any] = {
        "instance_id": "test",
        "version": "test",
        "identity_dir": Path("/nonexistent"),
        "consul_http_addr": "http://127.0.0.1:1",
        "vault_addr": "http://127.0.0.1:1",
        "otel_exporter_otlp_endpoint": "http://127.0.0.1:1",
        "bind_address": "127.0.0.1:0",
        "health_address": "127.0.0.1:0",
        "mesh": False,
    }
    return Environment(**(values | changes))


def process_settings(**changes: Any) -> ProcessSettings:
    """Returns settings of a process that records all traces and drains at once; `changes` replace fields."""
    values: dict[str, Any] = {
        "log_level": "INFO",
        "drain_seconds": 0.0,
        "grace_seconds": 1.0,
        "traces_per_second": 20.0,
        "trace_share": 1.0,
        "slow_seconds": 1.0,
        "mesh": {"leaf_seconds": 3600.0, "enforce": True},
        "token_keys_refresh_seconds": 60.0,
        "token_keys_retry_seconds": 3.0,
    }
    return ProcessSettings(**(values | changes))


def process(name: str, settings: K, consul: FakeConsul | None = None, **changes: Any) -> Process[K]:
    """Makes a Process on a FakeConsul; `changes` replace fields of its environment. Needs a running event loop."""
    return Process(name, environment(**changes), Live(settings), cast(ConsulClient, consul or FakeConsul()))


def _node(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"Service": {"ID": address, "Address": host, "Port": int(port)}, "Node": {"Address": host}}
