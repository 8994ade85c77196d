"""A gateway on loopback in front of the real services' code, and a client of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from chassis.calls.client import connect
from chassis.process import Process
from chassis.testing import FakeConsul, process
from gateway import app
from gateway.auth.access_tokens import Tokens
from gateway.auth.sessions import Backend
from gateway.http import http_server
from gateway.http.gateway_app import Edge
from gateway.profile_cache import Profiles
from gateway.routes.health import Dependencies
from gateway.settings import Settings
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from shop.user.v1.user_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server

from .backend_services import FakeVault, Orders, Servers, Worker, make_settings, until, user_rpc

_names = itertools.count(1)


@dataclass
class System:
    """All of it, and a client of the gateway."""

    http: httpx.AsyncClient
    address: tuple[str, int]
    vault: FakeVault
    process: Process[Settings]
    server: Any
    servers: Servers
    orders: Orders
    app: Edge
    _guest: dict[str, str] | None = None

    @property
    def worker(self) -> Worker:
        return self.orders.worker

    async def guest(self) -> dict[str, str]:
        """The header of a user signed in once for all tests: a password takes longer than the rest of a test."""
        self._guest = self._guest or await self.token("guest@example.com")
        return self._guest

    def change(self, **settings: Any) -> None:
        """Change settings of the running gateway."""
        live = self.process.settings
        live.replace(live.value.model_copy(update=settings))

    def taken(self) -> int:
        """Requests that the gateway works on."""
        return int(self.app.limiter.taken)

    async def register(self, email: str = "ada@example.com") -> httpx.Response:
        return await self.http.post("/v1/users", json={"email": email, "name": "Ada", "password": "correct horse"})

    async def token(self, email: str = "ada@example.com") -> dict[str, str]:
        """The header of a signed-in user, registered on the way."""
        await self.register(email)
        answer = await self.http.post("/v1/sessions", json={"email": email, "password": "correct horse"})
        return {"authorization": f"Bearer {answer.json()['access_token']}"}

    async def place(self, token: dict[str, str], key: str = "k1", **changes: Any) -> httpx.Response:
        body = {"currency": "EUR", "lines": [{"sku": "tea", "quantity": 2, "unit_price": 150}]} | changes
        return await self.http.post("/v1/orders", json=body, headers=token | {"idempotency-key": key})

    async def raw(self, data: bytes) -> bytes:
        """What comes back for bytes on a connection of their own, until the gateway or a deadline ends it."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@asynccontextmanager
async def running(vault: FakeVault | None = None, consul: FakeConsul | None = None) -> AsyncIterator[System]:
    vault, consul = vault or FakeVault(), consul or FakeConsul()
    servers, users, orders = Servers(consul), user_rpc(vault), Orders()
    await servers.start("user-service", lambda server: add_UserServiceServicer_to_server(users, server))
    await orders.start(servers)
    shipped = make_settings("gateway", Settings, drain_seconds=0.0, unknown_key_seconds=0.05)
    here: Process[Settings] = process("gateway", shipped, consul)
    edge = gateway_on(here, vault)
    if not vault.away:
        await until(lambda: edge.ctx.tokens.known)
    server: Any = await http_server.listen(edge, "127.0.0.1:0")
    address = server.server.sockets[0].getsockname()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", timeout=5) as http:
        yield System(http, address, vault, here, server, servers, orders, edge)
    await http_server.close(server, 1)
    await here.close()
    await servers.close()
    await orders.close()


def gateway_on(here: Process[Settings], vault: FakeVault) -> Edge:
    channels = {
        "user-service": connect(here, "user-service", settings=lambda: here.settings.value.users),
        "order-service": connect(here, "order-service", settings=lambda: here.settings.value.orders),
    }
    users: Any = channels["user-service"]
    orders: Any = channels["order-service"]
    tokens = Tokens(vault, lambda: here.settings.value)
    here.supervise("token keys", tokens.follow)
    health = Dependencies(here, tokens, channels)
    stubs: tuple[Any, Any] = UserServiceStub(users), OrderServiceStub(orders)
    profiles = Profiles(lambda: here.settings.value.profiles_kept)
    backend = Backend(*stubs, tokens, health, profiles, lambda: here.settings.value)
    edge = app.create(backend, f"gateway{next(_names)}")
    here.settings.on_change(edge.bound)
    edge.config.TOUCHUP = False  # it rewrites Sanic's own code, which works once in a process
    return edge
