"""`mesh dial`: an ordinary client gets answers as the operator, and a server that is not the service gets no call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from hvac.exceptions import VaultDown
from support.mesh.authority import Authority

from chassis.mesh.names import spiffe_id
from stack.cluster import agents
from stack.config import Stack
from stack.console import StackError
from stack.mesh import dial
from stack.mesh.dial import Address, Forwarder
from stack.mesh.operator_leaf import Leaf

SERVICE, METHOD = "order-service", "/test.Echo/Say"
BIG = bytes(range(256)) * 8_000  # several times the chunk that is copied at once
# Another channel to the same address would wait with this one after a failed attempt.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
CLOSED: Address = ("127.0.0.1", 1)


class Instance:
    """A gRPC server with mutual TLS that answers what it gets, and keeps the SPIFFE ids of its callers."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.server = grpc.aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(self._echo)
        service = grpc.method_handlers_generic_handler("test.Echo", {"Say": handler})
        self.server.add_generic_rpc_handlers((service,))

    async def start(self, leaf: Leaf) -> Address:
        credentials = grpc.ssl_server_credentials([(leaf.key, leaf.chain)], leaf.roots, require_client_auth=True)
        port = self.server.add_secure_port("127.0.0.1:0", credentials)
        await self.server.start()
        return "127.0.0.1", port

    async def _echo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.callers += [found.decode() for found in context.auth_context()["peer_spiffe_id"]]
        async for request in requests:
            yield request


class World:
    """A mesh with instances of the service, and a forwarder to them."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.addresses: list[Address] = []
        self.instances: list[Instance] = []
        self.issued: list[Leaf] = []
        self.reports: list[str] = []
        self.failure: Exception | None = None
        self.lasts: Callable[[Leaf], Leaf] = lambda leaf: leaf
        self.forwarder = Forwarder(SERVICE, self._issue, lambda: self.addresses, self.reports.append)

    async def instance(self, leaf: Leaf | None = None) -> Instance:
        """Starts an instance; with another leaf than that of the service, one that is not of it."""
        made = Instance()
        self.instances.append(made)
        self.addresses.append(await made.start(leaf or self.authority.leaf(SERVICE)))
        return made

    def _issue(self) -> Leaf:
        if self.failure is not None:
            raise self.failure
        self.issued.append(self.lasts(self.authority.leaf("operator")))
        return self.issued[-1]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.forwarder.close()
    await asyncio.gather(*(each.server.stop(None) for each in made.instances))


async def said(address: str, *texts: bytes) -> list[bytes]:
    """What an ordinary client without TLS receives for some messages in one call."""
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        call: Any = channel.stream_stream(METHOD)(iter(texts), timeout=20)  # type: ignore[arg-type]
        return [received async for received in call]


async def code(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def test_an_ordinary_client_is_answered_and_the_service_sees_the_operator(world: World) -> None:
    instance = await world.instance()
    address = await world.forwarder.open()
    assert await said(address, b"one", b"two") == [b"one", b"two"]
    assert instance.callers == [spiffe_id("operator", world.authority.trust_domain)]
    assert world.reports == []


async def test_large_messages_pass_unchanged_in_both_directions(world: World) -> None:
    await world.instance()
    address = await world.forwarder.open()
    assert await said(address, BIG, b"", BIG) == [BIG, b"", BIG]


async def test_connections_share_a_leaf_until_half_of_its_time_is_over(world: World) -> None:
    await world.instance()
    address = await world.forwarder.open()
    assert await asyncio.gather(*(said(address, b"a") for _ in range(3))) == [[b"a"]] * 3
    assert len(world.issued) == 1
    world.forwarder._leaf = _half_over(world.issued[0])
    assert await said(address, b"b") == [b"b"]
    assert len(world.issued) == 2


def _half_over(leaf: Leaf) -> Leaf:
    return replace(leaf, begins=time.time() - 31, ends=time.time() + 29)


async def test_without_openbao_a_leaf_is_used_until_it_ends(world: World) -> None:
    await world.instance()
    world.lasts = _half_over
    address = await world.forwarder.open()
    world.failure = VaultDown("sealed")
    assert await said(address, b"a") == [b"a"]
    assert [("last one stays in use" in each, "sealed" in each) for each in world.reports] == [(True, True)]
    world.forwarder._leaf = replace(world.issued[0], begins=0, ends=time.time() - 1)
    assert await code(said(address, b"b")) is grpc.StatusCode.UNAVAILABLE


async def test_without_a_leaf_the_command_does_not_begin(world: World) -> None:
    world.failure = VaultDown("sealed")
    with pytest.raises(VaultDown):
        await world.forwarder.open()


async def test_an_instance_that_cannot_be_reached_is_passed_over(world: World) -> None:
    await world.instance()
    world.addresses.append(CLOSED)
    address = await world.forwarder.open()
    assert [await said(address, b"a") for _ in range(8)] == [[b"a"]] * 8
    assert world.reports == []


async def test_without_a_healthy_instance_the_client_gets_unavailable_and_the_operator_the_reason(world: World) -> None:
    address = await world.forwarder.open()
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert "no healthy instance" in world.reports[0]


@pytest.mark.parametrize("name", ["user-service", "operator"])
async def test_a_server_with_another_name_gets_no_call(world: World, name: str) -> None:
    instance = await world.instance(world.authority.leaf(name))
    address = await world.forwarder.open()
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert "Hostname mismatch" in world.reports[0]
    assert instance.callers == []


async def test_a_server_of_a_foreign_authority_gets_no_call(world: World) -> None:
    instance = await world.instance(Authority().leaf(SERVICE))
    address = await world.forwarder.open()
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert "certificate verify failed" in world.reports[0]
    assert instance.callers == []


async def test_after_a_change_of_the_roots_the_next_connection_has_the_new_ones(world: World) -> None:
    address = await world.forwarder.open()
    world.authority = Authority()
    await world.instance()
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert await said(address, b"b") == [b"b"]


async def test_a_leaf_that_the_service_does_not_accept_is_reported(world: World) -> None:
    leaf = world.authority.leaf(SERVICE)
    await world.instance(replace(leaf, roots=Authority().root.encode()))
    address = await world.forwarder.open()
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert world.reports


async def test_a_program_of_another_user_is_not_forwarded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = await world.instance()
    address = await world.forwarder.open()
    monkeypatch.setattr(dial, "user_id", lambda peer, own: 12345)
    assert await code(said(address, b"a")) is grpc.StatusCode.UNAVAILABLE
    assert "another user (id 12345)" in world.reports[0]
    assert instance.callers == []


async def test_a_client_that_goes_away_ends_its_connection_without_a_report(world: World) -> None:
    await world.instance()
    address = await world.forwarder.open()
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    await asyncio.sleep(0.2)
    writer.transport.abort()
    while world.forwarder._connections:
        await asyncio.sleep(0.01)
    assert world.reports == []


async def test_a_chosen_port_is_used_and_one_that_is_taken_is_an_error(world: World) -> None:
    address = await world.forwarder.open()
    other = Forwarder(SERVICE, world._issue, list, world.reports.append)
    with pytest.raises(StackError, match=f"port {address.partition(':')[2]} cannot be opened"):
        await other.open(int(address.partition(":")[2]))


async def test_the_end_of_the_command_ends_its_connections(world: World) -> None:
    await world.instance()
    address = await world.forwarder.open()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(METHOD)(timeout=20)
        await call.write(b"a")
        assert await call.read() == b"a"
        await world.forwarder.close()
        assert await code(call.read()) is grpc.StatusCode.UNAVAILABLE


def test_only_services_that_serve_grpc_can_be_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(dial.names()) == ["order-service", "user-service"]
    monkeypatch.setattr(agents, "require_running", lambda stack: pytest.fail("it was started"))
    for name in ("gateway", "postgres", "nothing"):
        with pytest.raises(StackError, match="cannot be dialled"):
            dial.dial(Stack("never_deployed", 9), name, 0)
