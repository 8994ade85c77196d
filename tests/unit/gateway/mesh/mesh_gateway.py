"""A gateway in the mesh, in this process: real TLS, a fake Consul and authority, and no service behind it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from support.waiting import accepts, until

from chassis.mesh.names import server_name
from chassis.mesh.ssl_context import load_leaf
from chassis.process import Process
from chassis.serving.authorization import authorization_of
from chassis.settings import MeshSettings
from chassis.testing import FakeConsul, process
from gateway import composition
from gateway.auth.caller_authorization import CallerAuthorization
from gateway.http import http_server
from gateway.settings import Settings

from ...chassis.mesh.authority import Authority
from ...chassis.mesh.mesh_under_test import free_port
from ..backend_services import FakeVault, make_settings
from ..running_gateway import compose

Leaf = tuple[bytes, bytes]
SERVER = {"sni_hostname": server_name("gateway")}
"""The extension of httpx by which the gateway must have its name in the mesh."""


def allowing(caller: str, *permissions: dict[str, Any]) -> dict[str, Any]:
    """An intention, as Consul has it: everything, or what the permissions allow."""
    rules = {"Permissions": list(permissions)} if permissions else {"Action": "allow"}
    return {"SourceName": caller, "Precedence": 9, **rules}


class MeshGateway:
    """The gateway, which `edge` may call; `client` returns a client that shows a leaf."""

    def __init__(self) -> None:
        self.consul, self.authority = FakeConsul(), Authority()
        self.consul.trust(self.authority.as_consul())
        self.consul.intend("gateway", allowing("edge"))
        self.address, self.health = (f"127.0.0.1:{free_port()}" for _ in range(2))
        settings = make_settings("gateway", Settings, drain_seconds=0.0)
        self.process: Process[Settings] = process(
            "gateway", settings, self.consul, mesh=True, bind_address=self.address, health_address=self.health
        )
        self.process.vault.sign_certificate = self.authority.sign_certificate  # type: ignore[method-assign]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MeshGateway]:
        authorization = authorization_of(self.process)
        assert authorization is not None
        app = compose(self.process, FakeVault(), CallerAuthorization(authorization))
        serving = asyncio.create_task(http_server.serve(app, composition.create_health, self.process))
        try:
            await until("it serves", lambda: accepts(self.health))
            yield self
        finally:
            self.process.stopping.set()
            await serving
            await self.process.close()

    def leaf(self, service: str = "edge", **changes: Any) -> Leaf:
        return self.authority.leaf(service, **changes)

    def context(self, leaf: Leaf | None, roots: bytes | None = None) -> ssl.SSLContext:
        """How a caller with a leaf, or without one, connects."""
        context = ssl.create_default_context(cadata=(roots or self.authority.roots).decode())
        if leaf is not None:
            load_leaf(context, *leaf)
        return context

    def client(self, leaf: Leaf | None, roots: bytes | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://{self.address}", verify=self.context(leaf, roots), trust_env=False, timeout=5
        )

    async def get(self, path: str, leaf: Leaf | None, roots: bytes | None = None, **sent: Any) -> httpx.Response:
        """Sends a request on a connection of its own."""
        async with self.client(leaf, roots) as http:
            return await http.get(path, extensions=SERVER, **sent)

    async def get_in_plaintext(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            return await http.get(f"http://{self.address}{path}")

    def let_everything_through(self) -> None:
        """Switches the check of intentions off, as a control."""
        live = self.process.settings
        live.replace(live.value.model_copy(update={"mesh": MeshSettings(leaf_seconds=3600, enforce=False)}))

    async def replace_leaf(self) -> None:
        """Returns once the gateway has another leaf."""
        identity, issued = self.process.join_mesh(), self.authority.requests
        assert identity is not None
        before = identity.current
        identity._reissue.set()
        await until("it has another leaf", lambda: self.authority.requests > issued and identity.current != before)
