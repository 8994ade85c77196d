"""The concurrency limit of a server: first over real gRPC, then its movement on a manual clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from support.waiting import until

from chassis.errors import RpcError, deadline_exceeded
from chassis.serving.limiter import Limiter, LimiterSettings, Outcome
from chassis.settings import Live

from ..backends import Backends, error_of
from ..echo_service import SAY, Echo, Stub, endless


def limits(**changes: Any) -> LimiterSettings:
    values = {"calls_at_least": 3, "calls_at_most": 10, "target_seconds": 0.1, "shrink": 0.5}
    return LimiterSettings(**({"retry_after_seconds": 2.0} | values | changes))


@pytest.fixture
def backends(backends: Backends) -> Backends:
    backends.change(attempts=3)
    return backends


async def start(backends: Backends, behave: Any, *exempt: str, least: int = 1, most: int = 1) -> tuple[Echo, Limiter]:
    limiter = Limiter("echo", Live(limits(calls_at_least=least, calls_at_most=most)))
    server = await Echo(behave, limiter, exempt).start()
    backends.servers.append(server)
    backends.announce(server)
    return server, limiter


def held(gate: asyncio.Event) -> Any:
    async def hold(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    return hold


async def test_a_call_beyond_the_limit_is_rejected_immediately_and_never_retried(backends: Backends) -> None:
    gate = asyncio.Event()
    server, limiter = await start(backends, held(gate))
    first = asyncio.create_task(backends.stub.read("held"))
    await until("the call has arrived", lambda: server.seen == ["held"])
    began = time.monotonic()
    error = await error_of(backends.stub.read("rejected"))
    assert (error.code, error.reason, error.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 2.0)
    assert time.monotonic() - began < 1.0
    assert (server.seen, limiter.rejected, backends.state()) == (["held"], 1, "closed")
    gate.set()
    assert await first == "held"
    assert limiter.in_use == 0


@pytest.mark.parametrize("exempt", [(SAY,), ()], ids=["exempt", "control: limited"])
async def test_exempt_methods_are_answered_at_the_limit(backends: Backends, exempt: tuple[str, ...]) -> None:
    gate = asyncio.Event()

    async def hold_reads(text: str, _context: Any) -> str:
        if text == "held":
            await gate.wait()
        return text

    server, _ = await start(backends, hold_reads, *exempt)
    first = asyncio.create_task(backends.stub.read("held"))
    await until("the call has arrived", lambda: server.seen == ["held"])
    if exempt:
        assert await backends.stub.say("cancel") == "cancel"
    else:
        assert (await error_of(backends.stub.say("cancel"))).reason == "OVERLOADED"
    assert (await error_of(backends.stub.read("not exempt"))).reason == "OVERLOADED"
    gate.set()
    await first


async def test_a_stream_holds_its_permit_until_its_first_response(backends: Backends) -> None:
    gate = asyncio.Event()
    server, limiter = await start(backends, held(gate))
    silent = asyncio.create_task(backends.stub.count(0))
    await until("the stream has arrived", lambda: server.seen == ["0"])
    assert limiter.in_use == 1
    assert (await error_of(backends.stub.read("rejected"))).reason == "OVERLOADED"
    gate.set()
    assert await silent == []
    gate.clear()
    responses = backends.stub.Count(StringValue(value="3"))
    assert (await anext(responses)).value == "0"
    await until("the permit is released", lambda: limiter.in_use == 0)
    gate.set()
    assert [response.value async for response in responses] == ["1", "2"]


async def test_a_cancelled_call_releases_its_permit_and_does_not_move_the_limit(backends: Backends) -> None:
    server, limiter = await start(backends, held(asyncio.Event()), least=1, most=8)
    before = limiter.limit
    call = asyncio.create_task(backends.stub.read("cancelled"))
    await until("the call has arrived", lambda: server.seen == ["cancelled"])
    await asyncio.sleep(0.2)  # twice the target: as the duration of an answer, this would shrink the limit
    call.cancel()
    await until("the permit is released", lambda: limiter.in_use == 0)
    assert limiter.limit == before == 4


async def test_the_handler_of_a_call_past_its_deadline_is_cancelled_and_its_permit_released(backends: Backends) -> None:
    ended: list[str] = []
    _, limiter = await start(backends, endless(ended))
    assert (await error_of(backends.stub.say("late", timeout=0.2))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until("the handler has ended", lambda: ended == ["late"])
    await until("the permit is released", lambda: limiter.in_use == 0)


SLOW = 0.4
"""Seconds of a deadline that is four times the target."""


@pytest.mark.parametrize("how", ["client and server", "server only", "stream", "downstream"])
async def test_a_call_that_its_deadline_ends_shrinks_the_limit(backends: Backends, how: str) -> None:
    async def late(text: str, _context: Any) -> str:
        if how == "downstream":
            await asyncio.sleep(SLOW / 2)
            raise deadline_exceeded()
        await asyncio.Event().wait()
        return text

    server, limiter = await start(backends, late, least=1, most=8)
    before = limiter.limit
    if how == "server only":
        await _ask_without_a_timer(server)
    elif how == "stream":
        assert (await error_of(backends.stub.count(0, timeout=SLOW))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        error = await error_of(backends.stub.say("late", timeout=SLOW))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until("the permit is released", lambda: limiter.in_use == 0)
    assert limiter.limit < before


async def _ask_without_a_timer(server: Echo) -> None:
    """Makes a call that only the server ends: the caller sends the deadline as metadata, and has none of its own."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = Stub(channel).Say(StringValue(value="late"), metadata=(("grpc-timeout", f"{int(SLOW * 1000)}m"),))
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_call_with_a_deadline_below_the_target_does_not_move_the_limit(backends: Backends) -> None:
    """It would have taken longer, so it does not show that a higher limit would do."""
    _, limiter = await start(backends, held(asyncio.Event()), least=1, most=8)
    before = limiter.limit
    calls = [error_of(backends.stub.say("short", timeout=0.05)) for _ in range(4)]
    assert {error.code for error in await asyncio.gather(*calls)} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await until("the permits are released", lambda: limiter.in_use == 0)
    assert limiter.limit == before


class Server:
    """A limiter, and the calls of a server around it, on a manual clock."""

    def __init__(self, **changes: Any) -> None:
        self.now = 0.0
        self.settings = Live(limits(**changes))
        self.limiter = Limiter("server", self.settings, lambda: self.now)

    def burst(self, size: int, seconds: float) -> int:
        """Starts `size` calls together, which take `seconds`; returns the number of accepted calls."""
        permits = []
        for _ in range(size):
            try:
                permits.append(self.limiter.acquire())
            except RpcError:
                continue
        self.now += seconds
        for permit in permits:
            self.limiter.release(permit, Outcome.ANSWERED)
        return len(permits)


def test_slow_answers_shrink_the_limit_once_per_burst_down_to_its_lower_bound() -> None:
    server = Server()
    assert [server.burst(20, seconds=0.2) for _ in range(4)] == [10, 5, 3, 3]


def test_quick_answers_raise_the_limit_to_its_upper_bound() -> None:
    server = Server()
    for _ in range(4):
        server.burst(20, seconds=0.2)
    for _ in range(100):
        server.burst(20, seconds=0.01)
    assert server.burst(20, seconds=0.01) == 10


def test_quick_answers_far_below_the_limit_do_not_raise_it() -> None:
    server = Server(calls_at_most=100)
    for _ in range(4):
        server.burst(200, seconds=0.2)
    before = server.limiter.limit
    for _ in range(100):
        server.burst(1, seconds=0.01)
    assert server.limiter.limit == before


def test_a_changed_setting_applies_to_the_next_call() -> None:
    server = Server()
    assert server.burst(20, seconds=0.01) == 10
    server.settings.replace(limits(calls_at_most=4))
    assert server.burst(20, seconds=0.01) == 4


@pytest.mark.parametrize(("least", "in_time"), [(3, True), (10_000, False)], ids=["limited", "control: no limit"])
def test_at_three_times_its_capacity_a_server_still_answers_80_percent_of_it_in_time(least: int, in_time: bool) -> None:
    """The server answers 100 calls per second, in order of arrival, and receives 300."""
    server = Server(calls_at_least=least, calls_at_most=10_000, target_seconds=0.2, shrink=0.9)
    queue: list[tuple[float, Any]] = []
    answered = 0
    for _ in range(2000):
        server.now += 0.01
        for _ in range(3):
            try:
                queue.append((server.now, server.limiter.acquire()))
            except RpcError:
                continue
        arrived, permit = queue.pop(0)
        server.limiter.release(permit, Outcome.ANSWERED)
        answered += server.now - arrived < 0.5 and server.now > 10.0
    assert (answered >= 800) == in_time, answered
