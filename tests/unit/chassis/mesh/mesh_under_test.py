"""A service of the mesh with its server, and callers of it, in this process: real TLS, a fake Consul and authority."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from support.mesh.access_tokens import TokenKey
from support.waiting import accepts, until

from chassis.auth.acting_user import ActsFor, rules_of
from chassis.calls import client
from chassis.mesh.names import server_name
from chassis.process import Process
from chassis.serving import server
from chassis.serving.server import ActingUsers
from chassis.settings import Live, ProcessSettings
from chassis.testing import FakeConsul, process, process_settings
from shop_contract.access_tokens import AccessTokenFormat

from ..backends import SETTINGS as CLIENT_SETTINGS
from ..echo_service import NAME, READ, Echo, Stub, echo
from .authority import Authority

SETTINGS = process_settings()
ALLOWED: dict[str, Any] = {
    "SourceName": "gateway",
    "Precedence": 9,
    "Permissions": [{"Action": "allow", "HTTP": {"PathExact": READ}}],
}


class Mesh:
    """The service `echo`, which `gateway` may call by method Read; `calling` gives another process a stub.

    `acts_for` are the rules of its methods by name; the others act for no user. `key` signs the access tokens.
    """

    def __init__(self, acts_for: Mapping[str, ActsFor] | None = None) -> None:
        rules = dict.fromkeys(("Say", "Read", "Count")) | dict(acts_for or {})
        self.users = ActingUsers(rules_of(NAME, rules), AccessTokenFormat())
        self.key = TokenKey()
        self.consul, self.authority = FakeConsul(), Authority()
        self.consul.trust(self.authority.as_consul())
        self.consul.intend("echo", ALLOWED)
        self.service = Echo(echo)
        self.address = f"127.0.0.1:{free_port()}"
        self.health = f"127.0.0.1:{free_port()}"
        self.process = self.made("echo", bind_address=self.address, health_address=self.health)
        self.callers: list[Process[ProcessSettings]] = []

    def made(self, name: str, **changes: Any) -> Process[ProcessSettings]:
        made = process(name, SETTINGS, self.consul, mesh=True, **changes)
        made.vault.sign_certificate = self.authority.sign_certificate  # type: ignore[method-assign]
        made.vault.public_keys = self._public_keys  # type: ignore[method-assign]
        return made

    async def _public_keys(self, key: str) -> dict[int, bytes]:
        return {1: self.key.public}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mesh]:
        serving = asyncio.create_task(server.serve(self.process, self.service.register, [NAME], users=self.users))
        try:
            await until("it serves", lambda: accepts(self.address))
            self.consul.register("echo", self.address)
            yield self
        finally:
            for caller in self.callers:
                await caller.close()
            self.process.stopping.set()
            await serving
            await self.process.close()

    async def calling(self, name: str) -> Stub:
        """Returns a stub of `echo` in a process of the service `name`."""
        caller = self.made(name)
        self.callers.append(caller)
        identity = caller.join_mesh()
        assert identity is not None
        await identity.ready()
        return Stub(client.connect(caller, "echo", settings=Live(CLIENT_SETTINGS)))

    def with_leaf(self, leaf: tuple[bytes, bytes] | None, roots: bytes | None = None) -> grpc.aio.Channel:
        """Returns a plain channel of grpc that shows a leaf (key, chain), or none."""
        key, chain = leaf or (None, None)
        credentials = grpc.ssl_channel_credentials(roots or self.authority.roots, key, chain)
        named = [("grpc.ssl_target_name_override", server_name("echo"))]
        return grpc.aio.secure_channel(self.address, credentials, options=named)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def code_of(call: Callable[[], Awaitable[Any]]) -> grpc.StatusCode:
    """Returns the code that a call of a plain channel ends with, OK included."""
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
