"""The channel against real gRPC servers in this process: rejections, deadlines, errors and traces."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from chassis.deadline import deadline, remaining
from chassis.errors import RpcError
from chassis.telemetry import traces

from ..backends import Backends, error_of
from ..echo_service import echo, never


async def test_with_no_instance_a_call_fails_at_once_with_a_retry_time(backends: Backends) -> None:
    backends.announce()
    started = time.monotonic()
    error = await error_of(backends.stub.say("hi"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert error.retry_after is not None
    assert time.monotonic() - started < 0.1


async def test_an_open_breaker_rejects_calls_without_making_them(backends: Backends) -> None:
    backends.announce()
    for _ in range(3):
        await error_of(backends.stub.say("hi"))
    error = await error_of(backends.stub.say("hi"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BREAKER_OPEN")
    assert 0 < (error.retry_after or 0) <= 0.3


async def test_a_call_waits_only_briefly_for_the_first_list_of_instances(backends: Backends) -> None:
    backends.change(deadline_seconds=0.2)
    started = time.monotonic()
    assert (await error_of(backends.stub.say("hi"))).code is grpc.StatusCode.UNAVAILABLE
    assert 0.15 < time.monotonic() - started < 1.0


async def test_a_call_made_before_the_first_list_of_instances_is_sent_once_it_arrives(backends: Backends) -> None:
    call = asyncio.create_task(backends.stub.say("early"))
    await asyncio.sleep(0)
    await backends.start(echo)
    assert await call == "early"


async def test_a_call_to_an_instance_that_hangs_ends_in_deadline_exceeded(backends: Backends) -> None:
    await backends.start(never)
    started = time.monotonic()
    error = await error_of(backends.stub.say("hi", timeout=0.2))
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < 1.0


async def test_no_call_is_made_after_the_deadline(backends: Backends) -> None:
    (server,) = await backends.start(echo)
    with deadline(0):
        assert (await error_of(backends.stub.say("hi"))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.seen == []


@pytest.mark.parametrize("seconds", [0.001, 0.004])
async def test_a_call_with_hardly_any_time_left_is_not_sent_and_charged_to_nobody(
    backends: Backends, seconds: float
) -> None:
    (server,) = await backends.start(echo)
    for _ in range(5):
        with deadline(seconds):
            for call in (backends.stub.say("x"), backends.stub.read("x"), backends.stub.count(1)):
                assert (await error_of(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (server.seen, backends.state(), backends.target.balancer.ejected) == ([], "closed", [])


@pytest.mark.parametrize(("seconds", "charged"), [(0.03, False), (1.0, True)])
async def test_a_timeout_is_charged_only_if_the_call_had_the_time_that_its_method_takes(
    backends: Backends, seconds: float, charged: bool
) -> None:
    """The second case is the control: as much time as usual, and no answer."""
    pause = 0.15

    async def slow(text: str, _context: Any) -> str:
        await asyncio.sleep(pause)
        return text

    await backends.start(slow, slow)
    for _ in range(4):
        await backends.stub.say("usual")
    pause, was_ejected = 5.0, False
    for _ in range(6):
        assert (await error_of(backends.stub.say("x", timeout=seconds))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        was_ejected |= bool(backends.target.balancer.ejected)  # an ejection may end before the breaker opens
        if charged and backends.state() == "open":
            break
    assert was_ejected == charged
    assert backends.state() == ("open" if charged else "closed")


async def test_the_deadline_is_passed_on_to_the_called_service(backends: Backends) -> None:
    async def left(_text: str, _context: Any) -> str:
        return str(remaining())

    await backends.start(left)
    with deadline(1.0):
        assert 0.5 < float(await backends.stub.say("", timeout=30)) <= 1.1
    assert 1.0 < float(await backends.stub.say("")) <= 2.1


async def test_an_error_of_the_called_service_arrives_with_all_its_fields(backends: Backends) -> None:
    async def reject(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "no", {"email": "is not one"})

    await backends.start(reject)
    for _ in range(10):
        error = await error_of(backends.stub.say("x"))
    assert (error.code.name, error.reason, dict(error.fields)) == (
        "INVALID_ARGUMENT", "INVALID", {"email": "is not one"},
    )  # fmt: skip
    assert backends.state() == "closed"


async def test_an_unexpected_error_of_the_called_service_is_hidden_from_the_caller(backends: Backends) -> None:
    async def defect(_text: str, _context: Any) -> str:
        raise ValueError("password=hunter2")

    await backends.start(defect)
    error = await error_of(backends.stub.say("x"))
    assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "internal error")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_call_is_a_span_and_its_trace_context_is_sent(backends: Backends, spans: InMemorySpanExporter) -> None:
    (server,) = await backends.start(echo)
    await backends.stub.say("x", metadata=(("x-request", "1"),))
    (span,) = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert span.context is not None
    assert span.name == "test.Echo/Say"
    assert (span.attributes or {})["server.address"] == server.address
    assert (span.attributes or {})["breaker.state"] == "closed"
    expected = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    assert server.metadata["traceparent"] == expected
    assert server.metadata["x-request"] == "1"


async def test_a_rejection_by_the_breaker_is_an_event_of_the_span(
    backends: Backends, spans: InMemorySpanExporter
) -> None:
    backends.announce()
    for _ in range(4):
        await error_of(backends.stub.say("x"))
    opened, rejected = spans.get_finished_spans()[2:]
    assert (opened.attributes or {})["breaker.state"] == "open"
    assert (rejected.attributes or {})["error.type"] == "BREAKER_OPEN"
    assert [event.name for event in rejected.events] == ["breaker.rejected"]
    assert rejected.status.status_code.name == "ERROR"
