"""The limit of a server: refusals on the wire first, then how the limit moves on a clock the test turns."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from support.waiting import until

from chassis.errors import RpcError
from chassis.serving.interceptors import limited
from chassis.serving.limiter import Limiter, LimiterSettings

from ..backends import World, refusal, settings
from ..echo_service import READ, SAY, Echo


def limits(**changes: Any) -> LimiterSettings:
    shipped = {"calls_at_least": 3, "calls_at_most": 10, "target_seconds": 0.1, "shrink": 0.5}
    return LimiterSettings(**({"retry_after_seconds": 2.0} | shipped | changes))


@pytest.fixture
def world(world: World) -> World:
    world.settings = settings(retry__attempts=3)
    return world


async def start(world: World, behave: Any, limit: int, *exempt: str) -> tuple[Echo, Limiter]:
    limiter = Limiter("echo", lambda: limits(calls_at_least=1, calls_at_most=limit))
    server = await Echo(behave, interceptors=limited(limiter, exempt)).start()
    world.servers.append(server)
    world.announce(server)
    return server, limiter


def held(gate: asyncio.Event) -> Any:
    async def hold(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    return hold


async def test_a_call_beyond_the_limit_is_refused_at_once_and_never_retried(world: World) -> None:
    gate = asyncio.Event()
    server, limiter = await start(world, held(gate), 1)
    first = asyncio.create_task(world.stub.read("held"))
    await until("the call has arrived", lambda: server.seen == ["held"])
    began = time.monotonic()
    error = await refusal(world.stub.read("shed"))
    assert (error.code, error.reason, error.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 2.0)
    assert time.monotonic() - began < 1.0
    assert (server.seen, limiter.refused, world.state()) == (["held"], 1, "closed")
    gate.set()
    assert await first == "held"
    assert limiter.taken == 0


@pytest.mark.parametrize(("exempt", "answered"), [((SAY,), True), ((), False)])
async def test_exempt_methods_are_answered_however_much_there_is_to_do(
    world: World, exempt: tuple[str, ...], answered: bool
) -> None:
    """The second case is the control: what is not exempt is refused."""
    gate = asyncio.Event()

    async def hold_reads(text: str, _context: Any) -> str:
        if text == "held":
            await gate.wait()
        return text

    server, _ = await start(world, hold_reads, 1, *exempt)
    first = asyncio.create_task(world.stub.read("held"))
    await until("the call has arrived", lambda: server.seen == ["held"])
    results = await asyncio.gather(world.stub.say("cancel"), return_exceptions=True)
    assert (results == ["cancel"]) == answered
    gate.set()
    await first
    assert READ not in exempt


async def test_a_stream_holds_its_place_until_its_first_answer_only(world: World) -> None:
    gate = asyncio.Event()
    _, limiter = await start(world, held(gate), 1)
    answers = world.stub.Count(StringValue(value="3"))
    assert (await anext(answers)).value == "0"
    await until("nobody has a place", lambda: limiter.taken == 0)
    gate.set()
    assert [answer.value async for answer in answers] == ["1", "2"]


async def test_a_caller_that_hangs_up_gives_its_place_back(world: World) -> None:
    server, limiter = await start(world, held(asyncio.Event()), 1)
    call = asyncio.create_task(world.stub.read("left"))
    await until("the call has arrived", lambda: server.seen == ["left"])
    call.cancel()
    await until("nobody has a place", lambda: limiter.taken == 0)
    assert limiter.limit == 1


async def test_a_call_past_its_deadline_is_cancelled_at_the_far_end(world: World) -> None:
    ended: list[str] = []

    async def endless(text: str, _context: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(text)
        return text

    await start(world, endless, 5)
    assert (await refusal(world.stub.say("late", timeout=0.2))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until("the call has ended", lambda: ended == ["late"])


class Server:
    """A limiter and what it would see, on a clock."""

    def __init__(self, **changes: Any) -> None:
        self.now = 0.0
        self.settings = limits(**changes)
        self.limiter = Limiter("server", lambda: self.settings, lambda: self.now)

    def crowd(self, size: int, lasting: float) -> int:
        """So many come at once and take so long; how many were taken on."""
        places = []
        for _ in range(size):
            try:
                places.append(self.limiter.admit())
            except RpcError:
                continue
        self.now += lasting
        for place in places:
            self.limiter.release(place)
        return len(places)


def test_slow_answers_shrink_the_limit_once_a_crowd_and_never_below_the_least() -> None:
    server = Server()
    assert [server.crowd(20, lasting=0.2) for _ in range(4)] == [10, 5, 3, 3]


def test_quick_answers_let_it_grow_again_to_the_most() -> None:
    server = Server()
    for _ in range(4):
        server.crowd(20, lasting=0.2)
    for _ in range(100):
        server.crowd(20, lasting=0.01)
    assert server.crowd(20, lasting=0.01) == 10


def test_quick_answers_of_a_half_empty_server_prove_nothing() -> None:
    server = Server(calls_at_most=100)
    for _ in range(4):
        server.crowd(200, lasting=0.2)
    before = server.limiter.limit
    for _ in range(100):
        server.crowd(1, lasting=0.01)
    assert server.limiter.limit == before


def test_a_changed_setting_counts_for_the_next_call() -> None:
    server = Server()
    assert server.crowd(20, lasting=0.01) == 10
    server.settings = limits(calls_at_most=4)
    assert server.crowd(20, lasting=0.01) == 4


@pytest.mark.parametrize(("least", "goodput"), [(3, 0.8), (10_000, 0.0)])
def test_at_three_times_the_capacity_most_of_the_peak_is_still_answered_in_time(least: int, goodput: float) -> None:
    """A server that answers 100 a second, each after those before it. The second case is the control: no limit."""
    server = Server(calls_at_least=least, calls_at_most=10_000, target_seconds=0.2, shrink=0.9)
    queue: list[tuple[float, Any]] = []
    in_time = 0
    for _ in range(2000):
        server.now += 0.01
        for _ in range(3):
            try:
                queue.append((server.now, server.limiter.admit()))
            except RpcError:
                continue
        came, place = queue.pop(0)
        server.limiter.release(place)
        in_time += server.now - came < 0.5 and server.now > 10.0
    assert (in_time >= 800) == (goodput > 0.0), in_time
