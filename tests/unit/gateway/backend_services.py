"""What is behind the gateway: the real services' code on memory, called over real gRPC, and a Vault of our own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chassis.events.memory import MemoryEventStore
from chassis.process import Process
from chassis.serving.interceptors import INTERCEPTORS
from chassis.testing import FakeConsul, process
from order_service import commands as order_commands
from order_service import queries as order_queries
from order_service import settings as order_settings
from order_service.order_watches import OrderWatches
from order_service.rpc import OrderRpc
from order_service.storage.idempotency_keys import MemoryIdempotencyKeys
from shop.order.v1.order_pb2_grpc import add_OrderServiceServicer_to_server
from user_service import access_tokens as user_tokens
from user_service import commands as user_commands
from user_service import passwords
from user_service import queries as user_queries
from user_service import settings as user_settings
from user_service.rpc import UserRpc
from user_service.user_repository import MemoryAccounts

KV = Path(__file__).parents[3] / "consul" / "kv" / "config"


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for a condition to come true; fails when it does not in time."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "the condition did not come true in time"
        await asyncio.sleep(0.005)


class FakeVault:
    """Signs and tells public keys like the transit engine; `away` makes it raise."""

    def __init__(self) -> None:
        self.keys = {1: Ed25519PrivateKey.generate()}
        self.away: Exception | None = None
        self.reads = 0

    def rotate(self) -> None:
        self.keys[max(self.keys) + 1] = Ed25519PrivateKey.generate()

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        return self.keys[max(self.keys)].sign(payload), max(self.keys)

    async def public_keys(self, key: str) -> dict[int, bytes]:
        self.reads += 1
        if self.away:
            raise self.away
        return {version: each.public_key().public_bytes_raw() for version, each in self.keys.items()}


def make_settings(name: str, model: type[Any], **changes: Any) -> Any:
    """The shipped settings with some changed."""
    return model.model_validate(json.loads((KV / f"{name}.json").read_text()) | changes)


class Worker:
    """Settles orders in the place of the worker: `confirm` and `reject` them by id."""

    def __init__(self, orders: order_commands.Commands) -> None:
        self._orders = orders

    async def confirm(self, order_id: str) -> None:
        await self._orders.confirm_order(UUID(order_id))

    async def reject(self, order_id: str) -> None:
        await self._orders.reject_order(UUID(order_id), "CREDIT_EXCEEDED")


class Servers:
    """The services as gRPC servers on loopback; `stop` takes one away, `hang` makes every call of one wait."""

    def __init__(self, consul: FakeConsul) -> None:
        self._consul = consul
        self._servers: dict[str, dict[str, grpc.aio.Server]] = {}
        self.hanging: set[str] = set()

    async def start(self, name: str, register: Callable[[grpc.aio.Server], None]) -> str:
        """One more instance; its address."""
        server = grpc.aio.server(interceptors=[_Hang(self.hanging, name), *INTERCEPTORS])
        register(server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._servers.setdefault(name, {})[address] = server
        self._consul.register(name, *self._servers[name])
        return address

    async def stop(self, name: str) -> None:
        """Every instance, so that discovery knows."""
        self._consul.register(name)
        await asyncio.gather(*(server.stop(None) for server in self._servers.pop(name).values()))

    async def kill(self, name: str, address: str) -> None:
        """One instance, before discovery knows."""
        await self._servers[name].pop(address).stop(None)

    async def close(self) -> None:
        for name in list(self._servers):
            await self.stop(name)


class _Hang(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    def __init__(self, hanging: set[str], name: str) -> None:
        self._hanging, self._name = hanging, name

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        await until(lambda: self._name not in self._hanging, seconds=30)
        return await continuation(details)


def user_rpc(vault: FakeVault) -> UserRpc:
    settings = make_settings("user-service", user_settings.Settings, password_memory_kib=8192, password_passes=1)
    accounts = MemoryAccounts()
    hashes, tokens = passwords.Passwords(lambda: settings, b"pepper"), user_tokens.Tokens(vault)
    commands = user_commands.Commands(accounts, hashes, tokens, lambda: settings)
    return UserRpc(commands, user_queries.Queries(accounts))


class Orders:
    """One Order Service and as many instances of it as one asks for, all on the same store."""

    def __init__(self) -> None:
        self._settings, keys = make_settings("order-service", order_settings.Settings), MemoryIdempotencyKeys()
        self._store = MemoryEventStore(write_rows=keys.insert_key)
        self._queries = order_queries.Queries(self._store, order_queries.MemoryReadTable(self._store))
        self.commands = order_commands.Commands(self._store, keys, lambda: self._settings)
        self.worker = Worker(self.commands)
        self.instances: list[OrderInstance] = []

    async def start(self, servers: Servers) -> None:
        """One more instance."""
        here = process("order-service", self._settings)
        watchers = OrderWatches(here, self._store, self._queries)
        rpc = OrderRpc(self.commands, self._queries, watchers)
        address = await servers.start("order-service", lambda server: add_OrderServiceServicer_to_server(rpc, server))
        self.instances.append(OrderInstance(address, here, watchers))

    def watching(self) -> int:
        """Watches that are open, at all instances."""
        return sum(each.watchers.count for each in self.instances)

    def watched(self) -> OrderInstance:
        """The instance that somebody watches at."""
        return next(each for each in self.instances if each.watchers.count)

    async def close(self) -> None:
        for each in self.instances:
            await each.process.close()


@dataclass
class OrderInstance:
    """What the process of an instance is made of."""

    address: str
    process: Process[order_settings.Settings]
    watchers: OrderWatches
