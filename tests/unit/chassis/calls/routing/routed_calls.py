"""A channel that follows discovery chains of a FakeConsul, with real gRPC servers as versions 1 and 2 of a service."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from support.waiting import until

from chassis.calls.client import Channel
from chassis.calls.routing.discovery_chain import Subset
from chassis.calls.routing.router import Router
from chassis.calls.routing.target import Target
from chassis.calls.transport import GrpcTransport
from chassis.platform.discovery import Discovery
from chassis.settings import Live
from chassis.testing import FakeConsul

from ...backends import BREAKER_RULES, EJECTION_RULES, RETRY_RULES, SETTINGS
from ...echo_service import Behaviour, Echo, Stub
from .recorded_chains import CHAINS, SERVICE, V1, V2


class ManualConsul(FakeConsul):
    """Lists the instances of a subset only once it is in `listed`, and reports an outage on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[str, asyncio.Event] = {}
        self.outages: list[Callable[[], None]] = []

    def hide(self, matching: str) -> asyncio.Event:
        """Hides the instances that match until the returned event is set."""
        return self.listed.setdefault(matching, asyncio.Event())

    async def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None, *, matching: str = ""
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """See FakeConsul."""
        if matching in self.listed:
            await self.listed[matching].wait()
        async for nodes in super().watch_service(service, on_outage, matching=matching):
            yield nodes

    async def watch_discovery_chain(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """See FakeConsul."""
        self.outages += [on_outage] if on_outage else []
        async for chain in super().watch_discovery_chain(service, on_outage):
            yield chain


class RoutedCalls:
    """The channel, its router, and the servers by their names."""

    def __init__(self) -> None:
        self.consul = ManualConsul()
        self.settings = Live(SETTINGS)
        self.discovery = Discovery(self.consul, lambda _, work: asyncio.ensure_future(work()))
        self.router = Router(SERVICE, self._target)
        self.channel = Channel(SERVICE, self.router, self.settings)
        self.stub = Stub(self.channel)
        self.servers: dict[str, Echo] = {}
        self.following: asyncio.Task[None] | None = None

    def _target(self, subset: Subset) -> Target:
        endpoints = self.discovery.watch(subset.label, subset.service, subset.filter)
        return Target(
            endpoints, self.settings, GrpcTransport(), subset.name,
            breaker_rules=BREAKER_RULES, retry_rules=RETRY_RULES, ejection_rules=EJECTION_RULES,
        )  # fmt: skip

    async def serve(self, **behaviours: Behaviour) -> None:
        """Starts version 1 (`one`), version 2 (`two`) or the Order Service (`other`), then follows the rules."""
        for name, behaviour in behaviours.items():
            self.servers[name] = await Echo(behaviour).start()
        self.announce()
        self.following = asyncio.create_task(self.router.follow(self.consul))

    def announce(self, *absent: str) -> None:
        """Lists the servers in Consul, but for the absent ones."""
        at = {name: [server.address] for name, server in self.servers.items() if name not in absent}
        one, two = at.get("one", []), at.get("two", [])
        self.consul.register(SERVICE, *one, *two)
        self.consul.register(SERVICE, *one, matching=V1)
        self.consul.register(SERVICE, *two, matching=V2)
        self.consul.register("order-service", *at.get("other", []))

    async def route(self, chain: dict[str, Any] | str) -> None:
        """Sets a chain, or a recorded one by its name, and waits until it applies."""
        before = self.router.current
        self.consul.route(SERVICE, CHAINS[chain] if isinstance(chain, str) else chain)
        await until("the chain applies", lambda: self.router.current not in {None, before})

    def seen(self) -> dict[str, int]:
        """The number of calls that each server has received."""
        return {name: len(server.seen) for name, server in self.servers.items()}


@asynccontextmanager
async def routed_calls() -> AsyncIterator[RoutedCalls]:
    """Makes a channel that follows the chain of the User Service."""
    made = RoutedCalls()
    yield made
    if made.following is not None:
        made.following.cancel()
    await made.channel.close()
    for server in made.servers.values():
        await server.stop()


def route(path: str, destination: dict[str, Any], node: str) -> dict[str, Any]:
    definition = {"Match": {"HTTP": {"PathExact": path}}, "Destination": destination}
    return {"Definition": definition, "NextNode": f"resolver:{node}.default.default.dc1"}


def routes(*wanted: dict[str, Any]) -> dict[str, Any]:
    """The recorded chain with other routes before the last one."""
    chain = copy.deepcopy(CHAINS["routes"])
    node = chain["Nodes"][chain["StartNode"]]
    node["Routes"] = [*wanted, node["Routes"][-1]]
    return chain


def gated(gate: asyncio.Event) -> Behaviour:
    async def behave(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    return behave
