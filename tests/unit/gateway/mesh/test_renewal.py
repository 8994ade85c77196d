"""Requests go on while the leaf of a gateway and the roots of the mesh are replaced, and no response is cut."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sanic import HTTPResponse, Request, Sanic
from sanic.response import raw
from support.waiting import until

from chassis.mesh.names import server_name
from chassis.mesh.ssl_context import server_context
from gateway.http import http_server

from ...chassis.mesh.authority import Authority
from .mesh_gateway import SERVER, Leaf, MeshGateway


@pytest.fixture
async def gateway(spans: InMemorySpanExporter) -> AsyncIterator[MeshGateway]:
    async with MeshGateway().running() as made:
        yield made


async def serial(gateway: MeshGateway, leaf: Leaf) -> str:
    """The number of the certificate that the gateway shows to a new connection."""
    host, _, port = gateway.address.rpartition(":")
    context = gateway.context(leaf)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=server_name("gateway"))
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(found)


@asynccontextmanager
async def requesting(*ways: Callable[[], Awaitable[httpx.Response]]) -> AsyncIterator[list[int]]:
    """Sends requests in each way, one after the other, while the block runs; yields their statuses."""
    stop, statuses = asyncio.Event(), list[int]()

    async def repeat(way: Callable[[], Awaitable[httpx.Response]]) -> None:
        while not stop.is_set():
            statuses.append((await way()).status_code)

    tasks = [asyncio.create_task(repeat(way)) for way in ways]
    try:
        yield statuses
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_no_request_fails_while_the_leaf_is_replaced(gateway: MeshGateway) -> None:
    leaf, shown = gateway.leaf(), set[str]()
    async with gateway.client(leaf) as kept:
        new_connection, same_connection = (
            lambda: gateway.get("/livez", leaf),
            lambda: kept.get("/livez", extensions=SERVER),
        )
        async with requesting(new_connection, same_connection) as statuses:
            for _ in range(5):
                shown.add(await serial(gateway, leaf))
                await gateway.replace_leaf()
                answered = len(statuses)
                await until("requests are answered", lambda answered=answered: len(statuses) > answered + 5)  # type: ignore[misc]
    assert len(shown) == 5
    assert set(statuses) == {httpx.codes.OK}


async def test_a_root_is_replaced_and_what_only_the_old_one_has_signed_is_refused(
    gateway: MeshGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.mesh.identity._SPREAD_SECONDS", 0.1)
    old, new = gateway.authority, Authority("next")
    both = old.roots + new.roots
    gateway.process.vault.sign_certificate = new.sign_certificate  # type: ignore[method-assign]
    async with requesting(lambda: gateway.get("/livez", old.leaf("edge"), both)) as statuses:
        gateway.consul.trust(new.as_consul(old))
        await until("the gateway has a leaf below the new root", lambda: new.requests == 1)
        await until("requests are answered", lambda: len(statuses) > 10)
    assert set(statuses) == {httpx.codes.OK}
    assert (await gateway.get("/livez", new.leaf("edge"), new.roots)).status_code == httpx.codes.OK
    gateway.consul.trust(new.as_consul())

    async def is_refused() -> bool:
        try:
            await gateway.get("/livez", old.leaf("edge"), both)
        except httpx.TransportError:
            return True
        return False

    await until("the old root is not trusted any more", is_refused)
    assert (await gateway.get("/livez", new.leaf("edge"), new.roots)).status_code == httpx.codes.OK


@pytest.mark.parametrize("size", [30_000, 60_000, 300_000])
async def test_a_slow_reader_gets_the_whole_response_that_ends_a_connection(gateway: MeshGateway, size: int) -> None:
    """Most of it waits in buffers below TLS when the connection is closed."""
    identity = gateway.process.join_mesh()
    assert identity is not None
    app: Any = Sanic(f"large{size}", configure_logging=False)
    app.config.TOUCHUP = False

    async def answer(_: Request) -> HTTPResponse:
        return raw(bytes(size))

    app.add_route(answer, "/")
    server = await http_server.listen(app, "127.0.0.1:0", server_context(identity, of_callers=True))
    listening = server.server.sockets[0]  # type: ignore[attr-defined]
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # each connection inherits it
    body = await asyncio.to_thread(slowly_read, listening.getsockname()[1], gateway.context(gateway.leaf()))
    assert len(body) == size
    await http_server.close(server, 1)


def slowly_read(port: int, context: ssl.SSLContext) -> bytes:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    with context.wrap_socket(plain, server_hostname=server_name("gateway")) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: waypost\r\nconnection: close\r\n\r\n")
        # The response is written, and the connection closed, before any of it is read.
        time.sleep(0.3)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return received.partition(b"\r\n\r\n")[2]
