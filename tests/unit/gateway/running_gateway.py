"""A gateway on loopback in front of the real services' code, and a client of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from support.waiting import until

from chassis.auth.access_token_verifier import AccessTokenVerifier
from chassis.calls.client import connect
from chassis.process import Process
from chassis.testing import FakeConsul, process
from gateway import composition
from gateway.admission.client_limits import ClientLimits
from gateway.admission.loop_delay import LoopDelay
from gateway.auth.caller_authorization import CallerAuthorization
from gateway.auth.user_channel import UserChannel
from gateway.backend import Backend
from gateway.dependency_health import DependencyHealth
from gateway.http import http_server
from gateway.http.gateway_app import GatewayApp
from gateway.profile_cache import ProfileCache
from gateway.settings import Settings
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from shop.user.v1.user_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server
from shop_contract.access_tokens import AccessTokenFormat

from .backend_services import FakeVault, GrpcServers, OrderService, make_settings, make_user_rpc

_app_numbers = itertools.count(1)


@dataclass
class RunningGateway:
    """The gateway, the services behind it and a client."""

    http: httpx.AsyncClient
    address: tuple[str, int]
    vault: FakeVault
    process: Process[Settings]
    server: Any
    servers: GrpcServers
    orders: OrderService
    app: GatewayApp
    _guest: dict[str, str] | None = None

    async def guest(self) -> dict[str, str]:
        """Returns the header of a user who signs in once for all tests, because hashing a password is slow."""
        self._guest = self._guest or await self.token("guest@example.com")
        return self._guest

    def change(self, **settings: Any) -> None:
        """Changes settings of the running gateway."""
        live = self.process.settings
        live.replace(live.value.model_copy(update=settings))

    def requests_in_progress(self) -> int:
        """Returns how many requests hold a permit of the limiter."""
        return int(self.app.limiter.in_use)

    async def register(self, email: str = "ada@example.com") -> httpx.Response:
        """Registers a user."""
        return await self.http.post("/v1/users", json={"email": email, "name": "Ada", "password": "correct horse"})

    async def token(self, email: str = "ada@example.com") -> dict[str, str]:
        """Registers a user, signs in and returns the header."""
        await self.register(email)
        response = await self.http.post("/v1/sessions", json={"email": email, "password": "correct horse"})
        return {"authorization": f"Bearer {response.json()['access_token']}"}

    async def place(self, token: dict[str, str], key: str = "k1", **changes: Any) -> httpx.Response:
        """Places an order."""
        body = {"currency": "EUR", "lines": [{"sku": "tea", "quantity": 2, "unit_price": 150}]} | changes
        return await self.http.post("/v1/orders", json=body, headers=token | {"idempotency-key": key})

    async def raw(self, data: bytes) -> bytes:
        """Sends bytes on a new connection and returns all that is received until the gateway closes it."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@asynccontextmanager
async def running(vault: FakeVault | None = None, consul: FakeConsul | None = None) -> AsyncIterator[RunningGateway]:
    """Runs a gateway with one instance of each service."""
    vault, consul = vault or FakeVault(), consul or FakeConsul()
    servers, users, orders = GrpcServers(consul), make_user_rpc(vault), OrderService()
    await servers.start("user-service", lambda server: add_UserServiceServicer_to_server(users, server))
    await orders.start(servers)
    settings = make_settings("gateway", Settings, drain_seconds=0.0, token_keys_retry_seconds=0.05)
    gateway_process: Process[Settings] = process("gateway", settings, consul)
    gateway_app = compose(gateway_process, vault)
    if not vault.error:
        await until("the token keys are read", lambda: gateway_app.ctx.access_tokens.readiness() is None)
    server: Any = await http_server.listen(gateway_app, "127.0.0.1:0")
    address = server.server.sockets[0].getsockname()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", timeout=5) as http:
        yield RunningGateway(http, address, vault, gateway_process, server, servers, orders, gateway_app)
    await http_server.close(server, 1)
    await gateway_process.close()
    await servers.close()
    await orders.close()


def compose(process: Process[Settings], vault: FakeVault, callers: CallerAuthorization | None = None) -> GatewayApp:
    """Creates the parts as `gateway.__main__` does in a mesh, with the fake Vault and without probing its address."""
    settings = process.settings
    users: Any = connect(process, "user-service", settings=settings.section(lambda value: value.users))
    orders: Any = connect(process, "order-service", settings=settings.section(lambda value: value.orders))
    access_tokens = AccessTokenVerifier(vault, AccessTokenFormat(), settings)
    process.supervise("token keys", access_tokens.refresh_keys)
    health = DependencyHealth(process, access_tokens, {"user-service": users, "order-service": orders})
    of_users: Any = UserChannel
    stubs: tuple[Any, Any] = UserServiceStub(of_users(users)), OrderServiceStub(of_users(orders))
    limits = ClientLimits(settings.section(lambda value: value.clients))
    backend = Backend(*stubs, access_tokens, health, ProfileCache(settings), limits, LoopDelay(), settings)
    gateway_app = composition.create(backend, f"gateway{next(_app_numbers)}", callers)
    gateway_app.config.TOUCHUP = False  # it rewrites Sanic's own code, which works once in a process
    return gateway_app
