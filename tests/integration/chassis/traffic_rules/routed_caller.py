"""A gateway's channel on a real Consul, and gRPC servers as the instances that it calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from support.waiting import until

from chassis.calls.client import Channel
from chassis.errors import RpcError
from stack.cluster.mesh import config_entries

from ..servers import Server

SERVICE = "user-service"
METHODS = "/shop.user.v1.UserService"
DEFAULTS = {"Kind": "service-defaults", "Name": SERVICE, "Protocol": "grpc"}
VERSIONS = {f"v{number}": {"Filter": f'Service.Meta.version == "{number}"'} for number in (1, 2)}
RESOLVER = {"Kind": "service-resolver", "Name": SERVICE, "Subsets": VERSIONS}


def splitter(first: int) -> dict[str, Any]:
    shares = {"v1": first, "v2": 100 - first}
    splits = [{"Weight": weight, "ServiceSubset": subset} for subset, weight in shares.items()]
    return {"Kind": "service-splitter", "Name": SERVICE, "Splits": splits}


class Instance:
    """A gRPC server that answers each method with its name, after `pause` seconds."""

    def __init__(self, name: str, pause: float = 0.0) -> None:
        self._name = name
        self.pause = pause
        self.server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Starts to serve; returns the port."""
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers([self])  # type: ignore[list-item]
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    def service(self, _call: Any) -> Any:
        """For grpc: the handler of any method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, _context: Any) -> bytes:
        await asyncio.sleep(self.pause)
        return self._name.encode()


class Caller:
    """A channel of the gateway, with its rights in Consul, and the instances that it may call."""

    def __init__(self, agent: Server, channel: Channel) -> None:
        self.agent, self.channel = agent, channel
        self.instances: dict[str, Instance] = {}

    async def serve(self, name: str, pause: float = 0.0, service: str = SERVICE, **meta: str) -> None:
        """Starts an instance and registers it with its metadata, as Nomad does."""
        instance = self.instances[name] = Instance(name, pause)
        found = {"ID": name, "Name": service, "Address": "127.0.0.1", "Port": await instance.start(), "Meta": meta}
        await self.call_consul("PUT", "/v1/agent/service/register", found)

    async def put(self, *entries: dict[str, Any]) -> None:
        """Writes config entries."""
        for entry in entries:
            await self.call_consul("PUT", "/v1/config", entry)

    async def call_consul(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request to Consul while the event loop serves calls."""
        return await asyncio.to_thread(self.agent.call, method, path, body)

    async def call(self, method: str = "GetUser", **options: Any) -> str:
        """Makes a call; returns the name of the instance."""
        call = self.channel.unary_unary(f"{METHODS}/{method}", bytes, bytes)
        return bytes(await call(b"", **options)).decode()

    async def many(self, number: int) -> Counter[str]:
        """Makes calls, 20 at the same time; returns how many each instance got."""
        found: Counter[str] = Counter()

        async def some() -> None:
            for _ in range(number // 20):
                found[await self.call()] += 1

        await asyncio.gather(*(some() for _ in range(20)))
        return found

    async def reaches(self, number: int) -> bool:
        """Returns whether that many instances have answered within forty calls."""
        with suppress(RpcError):
            return len({await self.call() for _ in range(40)}) == number
        return False

    async def until_at(self, *names: str) -> None:
        """Waits until twenty calls in a row go to these instances alone."""

        async def there() -> bool:
            with suppress(RpcError):
                return {await self.call() for _ in range(20)} <= set(names)
            return False

        await until(f"calls go to {names}", there)


def forget_rules(agent: Server) -> None:
    for kind in reversed(config_entries.FOLDERS):
        for entry in agent.call("GET", f"/v1/config/{kind}"):
            agent.call("DELETE", f"/v1/config/{kind}/{entry['Name']}")
