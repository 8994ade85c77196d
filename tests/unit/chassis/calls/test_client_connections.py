"""Connections, against real gRPC servers in this process: no call ends because another one's instance has left.

Also what a cancelled call is: the caller's own cancellation, or a failure of the call.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from support.waiting import until

from chassis.calls import transport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint

from ..backends import Backends, error_of
from ..echo_service import Echo, echo, never


class Gate:
    """The behaviour of an instance whose calls wait until `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, text: str, _context: Any) -> str:
        await self.open.wait()
        return text


def _seen(server: Echo, times: int) -> bool:
    return len(server.seen) == times


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("meanwhile", [0, 1])
async def test_an_instance_that_leaves_and_returns_repeatedly_finishes_its_calls(
    backends: Backends, times: int, meanwhile: int
) -> None:
    """Whether or not it gets further calls each time that it has returned."""
    gate = Gate()
    (flapping,) = await backends.start(gate)
    other = await Echo(gate).start()
    backends.servers.append(other)
    calls = [asyncio.create_task(backends.stub.say("first"))]
    stream = backends.stub.Count(StringValue(value="1"))
    assert (await anext(stream)).value == "0"
    for _ in range(times):
        await until("each call has arrived", partial(_seen, flapping, 1 + len(calls)))
        backends.announce(other)
        await asyncio.sleep(0.02)
        backends.announce(flapping)
        calls += [asyncio.create_task(backends.stub.say("later")) for _ in range(meanwhile)]
        await asyncio.sleep(0.02)
    backends.announce(other)
    await asyncio.sleep(0.05)
    gate.open.set()
    assert await asyncio.gather(*calls) == ["first", *["later"] * times * meanwhile]
    assert [message async for message in stream] == []
    assert other.seen == []


async def test_an_instance_that_replaces_another_at_its_address_loses_no_call(backends: Backends) -> None:
    """As when Nomad gives the port of an ended allocation to the next one: both changes come in one list."""
    (server,) = await backends.start(echo)
    for number in range(20):
        calls = [asyncio.create_task(backends.stub.say(str(number))) for _ in range(5)]
        backends.endpoints.replace((Endpoint(f"allocation-{number}", server.address),))
        assert await asyncio.gather(*calls) == [str(number)] * 5


async def test_a_returned_instance_counts_the_calls_that_it_still_has(backends: Backends) -> None:
    gate = Gate()
    (busy,) = await backends.start(gate)
    calls = [asyncio.create_task(backends.stub.say("held")) for _ in range(10)]
    await until("each call has arrived", lambda: len(busy.seen) == 10)
    free = await Echo(echo).start()
    backends.servers.append(free)
    backends.announce(free)
    backends.announce(busy, free)
    for _ in range(20):
        await backends.stub.say("new")
    assert (busy.seen.count("new"), free.seen.count("new")) == (0, 20)
    gate.open.set()
    await asyncio.gather(*calls)


async def test_a_call_whose_connection_is_closed_fails_as_unavailable(backends: Backends) -> None:
    (server,) = await backends.start(never)
    call = asyncio.create_task(backends.stub.say("x"))
    stream = backends.stub.Count(StringValue(value="1"))
    assert (await anext(stream)).value == "0"
    await until("both calls have arrived", lambda: len(server.seen) == 2)
    await backends.target.close()
    for lost in (call, anext(stream)):
        error = await error_of(lost)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_a_caller_that_is_cancelled_gets_its_cancellation(backends: Backends) -> None:
    """The control of the test above."""
    (server,) = await backends.start(never)
    call = asyncio.create_task(backends.stub.say("x"))
    await until("the call has arrived", lambda: len(server.seen) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await backends.stub.say("y")


def cancels(details: str) -> Any:
    async def cancel(_text: str, context: Any) -> str:
        await context.abort(grpc.StatusCode.CANCELLED, details)
        return ""

    return cancel


def rejects(reason: str) -> Any:
    async def reject(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.CANCELLED, reason)

    return reject


CANCELS = [cancels(""), cancels("a part of the server has stopped"), rejects("CANCELLED")]


@pytest.mark.parametrize("behaviour", CANCELS, ids=["no text", "text", "status"])
async def test_a_call_that_a_handler_cancelled_is_not_repeated(backends: Backends, behaviour: Any) -> None:
    """Calls that no handler has begun are repeated: see the test that replaces instances one by one."""
    servers = await backends.start(behaviour, behaviour)
    assert (await error_of(backends.stub.say("once"))).code is grpc.StatusCode.UNAVAILABLE
    assert sum(len(server.seen) for server in servers) == 1


@pytest.mark.parametrize("details", ["database: connection refused", "failed to connect to the database"])
@pytest.mark.parametrize("with_status", [True, False])
async def test_a_call_whose_handler_could_not_connect_is_not_repeated(
    backends: Backends, details: str, with_status: bool
) -> None:
    """The texts resemble those of gRPC for a connection that was never established."""

    async def fail(_text: str, context: Any) -> str:
        if with_status:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", details)
        await context.abort(grpc.StatusCode.UNAVAILABLE, details)
        return ""

    servers = await backends.start(fail, fail)
    assert (await error_of(backends.stub.say("once"))).code is grpc.StatusCode.UNAVAILABLE
    assert sum(len(server.seen) for server in servers) == 1


@pytest.mark.parametrize("behaviour", CANCELS, ids=["no text", "text", "status"])
async def test_an_idempotent_call_that_a_handler_cancelled_is_retried(backends: Backends, behaviour: Any) -> None:
    await backends.start(behaviour, echo)
    for number in range(10):
        assert await backends.stub.read(str(number)) == str(number)


async def cancel_what_it_waits_for(_text: str, _context: Any) -> str:
    waiting = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(waiting.cancel)
    await waiting
    return ""


async def test_a_handler_that_is_ended_from_within_answers_at_once(backends: Backends) -> None:
    """grpc.aio sends no status for it, so the caller would wait until its deadline."""
    await backends.start(cancel_what_it_waits_for)
    error = await error_of(backends.stub.say("x"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


class FakeChannel:
    """A channel that is ready at once, or never."""

    def __init__(self, *, ready: bool) -> None:
        self.ready, self.closed = ready, False

    def get_state(self, *, try_to_connect: bool) -> None:
        assert try_to_connect

    async def channel_ready(self) -> None:
        if not self.ready:
            await asyncio.Event().wait()

    async def close(self, _grace: float | None) -> None:
        self.closed = True


async def test_a_renewal_that_takes_long_does_not_replace_the_channel_of_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "_REPLACE_SECONDS", 0.1)
    channels = old, stuck, new = [FakeChannel(ready=True), FakeChannel(ready=False), FakeChannel(ready=True)]
    made: Any = iter(channels)
    connection = transport.GrpcConnection(lambda: next(made))
    connection.renew()
    await asyncio.sleep(0)
    connection.renew()
    await until("both have ended", lambda: not connection._renewals)
    assert [channel.closed for channel in (old, stuck, new)] == [True, True, False]
    await connection.close()
    assert new.closed
