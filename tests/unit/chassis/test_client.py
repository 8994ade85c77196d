"""The channel against real gRPC servers in this process: refusals first, then balancing, retry and healing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis import client
from chassis.breaker import BreakerKnobs
from chassis.bulkhead import BulkheadKnobs
from chassis.client import Channel, ClientKnobs
from chassis.deadline import deadline, remaining
from chassis.discovery import Endpoint, Endpoints
from chassis.errors import RpcError, unavailable
from chassis.peers import BalancingKnobs
from chassis.retry import RetryKnobs
from chassis.transport import GrpcTransport

from .echo import Echo, Stub, echo, never

KNOBS = ClientKnobs(
    deadline_seconds=2.0,
    bulkhead=BulkheadKnobs(calls_at_once=1000, wait_seconds=0.05),
    breaker=BreakerKnobs(
        window_seconds=5.0, minimum_calls=3, failure_ratio=0.5, slow_seconds=60.0, slow_ratio=1.0,
        failures_in_a_row=50, reset_seconds=0.3, half_open_max=1,
    ),
    retry=RetryKnobs(
        attempts=2, attempt_seconds=5.0, first_seconds=0.01, longest_seconds=0.05,
        budget_ratio=0.1, budget_per_second=0.0, budget_saved=50,
    ),
    balancing=BalancingKnobs(
        failures=1, silent_seconds=5.0, outlier_factor=100.0, outlier_seconds=1.0, left_out_seconds=1.0,
        left_out_longest_seconds=16.0, left_out_share=0.5, return_seconds=0.0, warmup_seconds=0.0,
    ),
)  # fmt: skip


def knobs(**changes: Any) -> ClientKnobs:
    """The knobs with some changed, each named section__knob or by its own name."""
    changed = KNOBS.model_dump()
    for name, value in changes.items():
        section, _, knob = name.partition("__")
        if knob:
            changed[section][knob] = value
        else:
            changed[name] = value
    return ClientKnobs(**changed)


class World:
    """A channel, the endpoints it follows and the servers behind them."""

    def __init__(self) -> None:
        self.knobs = KNOBS
        self.endpoints = Endpoints("echo")
        self.channel = Channel("echo", self.endpoints, lambda: self.knobs, GrpcTransport())
        self.stub = Stub(self.channel)
        self.servers: list[Echo] = []

    async def start(self, *behaviours: Any) -> list[Echo]:
        started = [await Echo(behaviour).start() for behaviour in behaviours]
        self.servers += started
        self.announce(*started)
        return started

    def state(self) -> str:
        return self.channel.breaker.state

    def announce(self, *servers: Echo) -> None:
        self.endpoints.replace(tuple(Endpoint(s.address, s.address) for s in servers))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.channel.close()
    for server in made.servers:
        await server.stop()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "the condition was not met in time"
        await asyncio.sleep(0.01)


async def refusal(call: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value


async def test_with_no_instance_a_call_fails_at_once_with_a_retry_time(world: World) -> None:
    world.announce()
    started = time.monotonic()
    error = await refusal(world.stub.say("hi"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert error.retry_after is not None
    assert time.monotonic() - started < 0.1


async def test_an_open_breaker_answers_in_place_of_the_service(world: World) -> None:
    world.announce()
    for _ in range(3):
        await refusal(world.stub.say("hi"))
    error = await refusal(world.stub.say("hi"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BREAKER_OPEN")
    assert 0 < (error.retry_after or 0) <= 0.3


async def test_before_discovery_has_answered_a_call_waits_a_moment_not_for_ever(world: World) -> None:
    world.knobs = knobs(deadline_seconds=0.2)
    started = time.monotonic()
    assert (await refusal(world.stub.say("hi"))).code is grpc.StatusCode.UNAVAILABLE
    assert 0.15 < time.monotonic() - started < 1.0


async def test_a_call_that_came_before_discovery_is_made_when_it_answers(world: World) -> None:
    call = asyncio.create_task(world.stub.say("early"))
    await asyncio.sleep(0)
    await world.start(echo)
    assert await call == "early"


async def test_a_silent_instance_ends_in_deadline_exceeded(world: World) -> None:
    await world.start(never)
    started = time.monotonic()
    error = await refusal(world.stub.say("hi", timeout=0.2))
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < 1.0


async def test_a_deadline_that_has_passed_makes_no_call(world: World) -> None:
    (server,) = await world.start(echo)
    with deadline(0):
        assert (await refusal(world.stub.say("hi"))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.seen == []


async def test_the_deadline_travels_to_the_callee(world: World) -> None:
    async def left(_text: str, _context: Any) -> str:
        return str(remaining())

    await world.start(left)
    with deadline(1.0):
        assert 0.5 < float(await world.stub.say("", timeout=30)) <= 1.1
    assert 1.0 < float(await world.stub.say("")) <= 2.1


async def test_a_refusal_of_the_callee_arrives_whole(world: World) -> None:
    async def refuse(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "no", {"email": "is not one"})

    await world.start(refuse)
    for _ in range(10):
        error = await refusal(world.stub.say("x"))
    assert (error.code.name, error.reason, dict(error.fields)) == (
        "INVALID_ARGUMENT", "INVALID", {"email": "is not one"},
    )  # fmt: skip
    assert world.state() == "closed"


async def test_a_defect_of_the_callee_is_hidden_from_the_caller(world: World) -> None:
    async def defect(_text: str, _context: Any) -> str:
        raise ValueError("password=hunter2")

    await world.start(defect)
    error = await refusal(world.stub.say("x"))
    assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_calls_spread_over_all_instances(world: World) -> None:
    servers = await world.start(echo, echo, echo)
    await asyncio.gather(*(world.stub.say("x") for _ in range(300)))
    assert min(len(server.seen) for server in servers) > 50


async def test_a_busy_instance_gets_fewer_calls(world: World) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    busy, free = await world.start(slow, echo)
    calls = [asyncio.create_task(world.stub.say("x")) for _ in range(20)]
    await until(lambda: len(busy.seen) + len(free.seen) == 20)
    # An answer that is on its way still counts as a call that the free one has.
    await until(lambda: sum(call.done() for call in calls) == len(free.seen))
    before = len(busy.seen)
    for _ in range(30):
        await world.stub.say("x")
    assert len(busy.seen) == before
    gate.set()
    await asyncio.gather(*calls)


async def test_a_new_instance_is_used_and_a_gone_one_is_not(world: World) -> None:
    (first,) = await world.start(echo)
    await world.stub.say("a")
    (second,) = await world.start(echo)
    for _ in range(5):
        await world.stub.say("b")
    assert (Counter(first.seen), Counter(second.seen)) == (Counter(a=1), Counter(b=5))


async def test_an_instance_that_left_finishes_the_call_it_has(world: World) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    (old,) = await world.start(slow)
    call = asyncio.create_task(world.stub.say("kept"))
    await until(lambda: old.seen == ["kept"])
    await world.start(echo)
    assert await world.stub.say("new") == "new"
    gate.set()
    assert await call == "kept"


async def test_a_dead_instance_costs_no_call_while_another_lives(world: World) -> None:
    dead, alive = await world.start(echo, echo)
    await dead.stop()
    for number in range(50):
        assert await world.stub.say(str(number)) == str(number)
    assert alive.seen == [str(number) for number in range(50)]
    assert world.state() == "closed"


async def test_an_instance_that_does_not_answer_is_avoided_for_a_while(world: World) -> None:
    hung, good = await world.start(never, echo)
    while not hung.seen:
        try:
            await world.stub.say("x", timeout=0.1)
        except RpcError:
            break
    before = len(hung.seen)
    for _ in range(20):
        await world.stub.say("y", timeout=0.5)
    assert len(hung.seen) == before
    assert good.seen.count("y") == 20


async def test_a_call_that_may_have_happened_is_not_made_again(world: World) -> None:
    servers = await world.start(_cut, _cut)
    error = await refusal(world.stub.say("once"))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert sum(server.seen.count("once") for server in servers) == 1


async def test_a_call_the_contract_calls_repeatable_is_made_once_more_elsewhere(world: World) -> None:
    servers = await world.start(_cut, echo)
    for number in range(10):
        assert await world.stub.read(str(number)) == str(number)
    assert servers[1].seen.count("0") == 1


async def test_a_call_an_instance_has_no_room_for_is_made_elsewhere(world: World) -> None:
    gate = asyncio.Event()

    async def hold(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    full = await Echo(hold, limit=1).start()
    world.servers.append(full)
    world.announce(full)
    held = asyncio.create_task(world.stub.say("held"))
    await until(lambda: full.seen == ["held"])
    error = await refusal(world.stub.say("shed"))
    assert (error.code, error.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.3)
    free = await Echo(echo).start()
    world.servers.append(free)
    world.announce(full, free)
    for number in range(20):
        assert await world.stub.say(str(number)) == str(number)
    assert world.state() == "closed"
    gate.set()
    await held


async def test_a_call_that_was_cut_off_while_it_ran_is_not_made_again(world: World) -> None:
    cut, other = await world.start(never, never)
    call = asyncio.create_task(world.stub.say("once"))
    await until(lambda: len(cut.seen) + len(other.seen) == 1)
    await (cut if cut.seen else other).stop(0.05)
    assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
    assert len(cut.seen) + len(other.seen) == 1


async def test_calls_survive_instances_that_stop_one_after_the_other(world: World) -> None:
    """A deploy: each instance leaves the set late, after it began to refuse; no call is lost."""
    servers = await world.start(echo, echo)
    done, stop = 0, asyncio.Event()

    async def caller() -> None:
        nonlocal done
        while not stop.is_set():
            await world.stub.say("x")
            done += 1

    callers = [asyncio.create_task(caller()) for _ in range(10)]
    for index in (0, 1):
        await until(lambda want=done + 200: done >= want)  # type: ignore[misc]
        replacement = await Echo(echo).start()
        world.servers.append(replacement)
        old, servers[index] = servers[index], replacement
        stopping = asyncio.create_task(old.stop(2.0))
        await until(lambda want=done + 50: done >= want)  # type: ignore[misc]
        world.announce(*servers)
        await stopping
    stop.set()
    await asyncio.gather(*callers)


async def test_it_heals_by_itself_after_the_service_came_back(world: World) -> None:
    (server,) = await world.start(echo)
    await server.stop()
    for _ in range(4):
        await refusal(world.stub.say("down"))
    assert world.state() == "open"
    back = await Echo(echo).start(server.address)
    world.servers.append(back)

    async def answered() -> bool:
        try:
            return await world.stub.say("up") == "up"
        except RpcError:
            return False

    ends_at = time.monotonic() + 5
    while not await answered():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.05)
    assert world.state() == "closed"


async def test_a_new_instance_is_probed_at_once_although_the_breaker_is_open(world: World) -> None:
    world.knobs = knobs(breaker__reset_seconds=60.0)
    world.announce()
    for _ in range(3):
        await refusal(world.stub.say("down"))
    assert world.state() == "open"
    await world.start(echo)
    assert await world.stub.say("up") == "up"
    assert world.state() == "closed"


async def test_callers_that_give_up_do_not_open_the_breaker(world: World) -> None:
    (server,) = await world.start(never)
    calls = [asyncio.create_task(world.stub.say("x")) for _ in range(20)]
    await until(lambda: len(server.seen) == 20)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert world.state() == "closed"


async def test_a_stream_arrives_and_ends(world: World) -> None:
    await world.start(echo)
    assert await world.stub.count(3) == ["0", "1", "2"]
    assert await world.stub.count(0) == []


async def test_a_stream_with_nobody_behind_it_is_refused(world: World) -> None:
    world.announce()
    assert (await refusal(world.stub.count(3))).code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_breaks_says_so_after_what_it_gave(world: World) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise unavailable("DATABASE_UNAVAILABLE", "later", 1.0)

    await world.start(fail)
    stream = world.stub.Count(StringValue(value="2"))
    assert [(await anext(stream)).value for _ in range(2)] == ["0", "1"]
    with pytest.raises(RpcError, match="later"):
        await anext(stream)


async def test_a_stream_left_early_frees_its_instance(world: World) -> None:
    await world.start(never)
    stream = world.stub.Count(StringValue(value="2"))
    assert (await anext(stream)).value == "0"
    await stream.aclose()
    assert [peer.outstanding for peer in world.channel.balancer._peers.values()] == [0]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(client, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_call_is_a_span_whose_trace_the_callee_is_told(world: World, spans: InMemorySpanExporter) -> None:
    (server,) = await world.start(echo)
    await world.stub.say("x", metadata=(("x-request", "1"),))
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert (span.name, span.kind.name) == ("test.Echo/Say", "CLIENT")
    assert (span.attributes or {})["server.address"] == server.address
    assert (span.attributes or {})["breaker.state"] == "closed"
    expected = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    assert server.metadata["traceparent"] == expected
    assert server.metadata["x-request"] == "1"


async def test_an_open_breaker_shows_in_the_trace(world: World, spans: InMemorySpanExporter) -> None:
    world.announce()
    for _ in range(4):
        await refusal(world.stub.say("x"))
    tripped, refused = spans.get_finished_spans()[2:]
    assert (tripped.attributes or {})["breaker.state"] == "open"
    assert (refused.attributes or {})["error.type"] == "BREAKER_OPEN"
    assert [event.name for event in refused.events] == ["breaker.refused"]
    assert refused.status.status_code.name == "ERROR"


async def _cut(_text: str, context: Any) -> str:
    """Answer as a server whose connection broke under the call."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    return ""


async def test_a_stream_that_does_not_begin_in_time_fails_and_its_failures_open_the_breaker(world: World) -> None:
    world.knobs = knobs(deadline_seconds=0.05, breaker__reset_seconds=60.0)
    await world.start(never)
    for _ in range(KNOBS.breaker.minimum_calls):
        assert (await refusal(world.stub.count(0))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert world.state() == "open"


async def test_a_stream_that_has_begun_may_be_silent_for_longer_than_a_call_may_take(world: World) -> None:
    async def later(_text: str, _context: Any) -> str:
        await asyncio.sleep(KNOBS.deadline_seconds + 0.5)
        return ""

    await world.start(later)
    assert await world.stub.count(1) == ["0"]
