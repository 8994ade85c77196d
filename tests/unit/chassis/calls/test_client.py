"""The channel against real gRPC servers in this process: what it refuses, passes on, and tells the trace."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis.calls import client
from chassis.deadline import deadline, remaining
from chassis.errors import RpcError

from ..backends import World, refusal, settings
from ..echo_service import echo, never


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
    world.settings = settings(deadline_seconds=0.2)
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
