"""The services behind the gateway: their real code on memory, called over real gRPC, and a fake Vault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.waiting import until

from chassis.events.memory import MemoryEventStore
from chassis.process import Process
from chassis.serving.interceptor import CallInterceptor
from chassis.settings import Live
from chassis.testing import FakeConsul, process
from order_service import commands as order_commands
from order_service import queries as order_queries
from order_service import settings as order_settings
from order_service.order_watches import OrderWatches
from order_service.rpc import OrderRpc
from order_service.storage.idempotency_keys import MemoryIdempotencyKeys
from shop.order.v1.order_pb2_grpc import add_OrderServiceServicer_to_server
from user_service import commands as user_commands
from user_service import queries as user_queries
from user_service import settings as user_settings
from user_service.access_token_issuer import AccessTokenIssuer
from user_service.passwords import Passwords
from user_service.rpc import UserRpc
from user_service.user_repository import MemoryUserRepository

KV = Path(__file__).parents[3] / "consul" / "kv" / "config"


class FakeVault:
    """Signs and returns public keys like the transit engine; reading them raises `error` if it is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.keys = {1: Ed25519PrivateKey.generate()}
        self.error = error
        self.reads = 0

    def rotate(self) -> None:
        self.keys[max(self.keys) + 1] = Ed25519PrivateKey.generate()

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        return self.keys[max(self.keys)].sign(payload), max(self.keys)

    async def public_keys(self, key: str) -> dict[int, bytes]:
        self.reads += 1
        if self.error:
            raise self.error
        return {version: private.public_key().public_bytes_raw() for version, private in self.keys.items()}


def make_settings(name: str, model: type[Any], **changes: Any) -> Any:
    """Returns the shipped settings with some changed."""
    return model.model_validate(json.loads((KV / f"{name}.json").read_text()) | changes)


class GrpcServers:
    """The instances of the services on loopback; calls to a service in `hanging` do not return."""

    def __init__(self, consul: FakeConsul) -> None:
        self._consul = consul
        self._servers: dict[str, dict[str, grpc.aio.Server]] = {}
        self.hanging: set[str] = set()

    async def start(self, name: str, register: Callable[[grpc.aio.Server], None]) -> str:
        """Starts one more instance and returns its address."""
        server = grpc.aio.server(interceptors=[_Hang(self.hanging, name), CallInterceptor()])
        register(server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._servers.setdefault(name, {})[address] = server
        self._consul.register(name, *self._servers[name])
        return address

    async def stop(self, name: str) -> None:
        """Stops and deregisters every instance of a service."""
        self._consul.register(name)
        await asyncio.gather(*(server.stop(None) for server in self._servers.pop(name).values()))

    async def kill(self, name: str, address: str) -> None:
        """Stops an instance that stays registered."""
        await self._servers[name].pop(address).stop(None)

    async def close(self) -> None:
        for name in list(self._servers):
            await self.stop(name)


class _Hang(grpc.aio.ServerInterceptor):
    def __init__(self, hanging: set[str], name: str) -> None:
        self._hanging, self._name = hanging, name

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        await until("the service does not hang any more", lambda: self._name not in self._hanging, seconds=30)
        return await continuation(details)


def make_user_rpc(vault: FakeVault) -> UserRpc:
    """Returns the User Service on memory."""
    cheap = {"password_memory_kib": 8192, "password_passes": 1}
    settings = Live(make_settings("user-service", user_settings.Settings, **cheap))
    users = MemoryUserRepository()
    passwords = Passwords(settings, b"pepper")
    commands = user_commands.Commands(users, passwords, AccessTokenIssuer(vault), settings)
    return UserRpc(commands, user_queries.Queries(users))


class OrderService:
    """The Order Service: any number of instances on the same store in memory."""

    def __init__(self) -> None:
        self._settings, keys = make_settings("order-service", order_settings.Settings), MemoryIdempotencyKeys()
        self._store = MemoryEventStore(write_rows=keys.insert_key)
        self._queries = order_queries.Queries(self._store, order_queries.MemoryReadTable(self._store))
        self._commands = order_commands.Commands(self._store, keys, Live(self._settings))
        self.instances: list[OrderInstance] = []

    async def start(self, servers: GrpcServers) -> None:
        """Starts one more instance."""
        instance = process("order-service", self._settings)
        watches = OrderWatches(instance, self._store, self._queries)
        rpc = OrderRpc(self._commands, self._queries, watches)
        address = await servers.start("order-service", lambda server: add_OrderServiceServicer_to_server(rpc, server))
        self.instances.append(OrderInstance(address, instance, watches))

    async def confirm(self, order_id: str) -> None:
        """Does the work of the process manager for an order."""
        await self._commands.confirm_order(UUID(order_id))

    async def reject(self, order_id: str) -> None:
        """Does the work of the process manager for an order beyond the credit."""
        await self._commands.reject_order(UUID(order_id), "CREDIT_EXCEEDED")

    def open_watches(self) -> int:
        """Returns how many watches are open at all instances."""
        return sum(instance.watches.count for instance in self.instances)

    def watched_instance(self) -> OrderInstance:
        """Returns the first instance with an open watch."""
        return next(instance for instance in self.instances if instance.watches.count)

    async def close(self) -> None:
        for instance in self.instances:
            await instance.process.close()


@dataclass
class OrderInstance:
    """The parts of an instance's process."""

    address: str
    process: Process[order_settings.Settings]
    watches: OrderWatches
