"""What cannot be received, decoded or encoded gets gRPC's code for it, a span, a metric and a log line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from support.waiting import until

from chassis.serving.call_telemetry import MethodTelemetry
from chassis.serving.interceptor import CallInterceptor

SERVICE = "test.Messages"
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
UNDECODABLE = b"\x0a\x7f\xff"
LARGE = StringValue(value="x" * 5_000_000).SerializeToString()


async def _echo(request: StringValue, _context: Any) -> StringValue:
    return request


async def _wrong(_request: StringValue, _context: Any) -> Any:
    return "not a message"


async def _count(request: StringValue, _context: Any) -> AsyncIterator[Any]:
    for number in range(3):
        yield StringValue(value=str(number))
    if request.value == "wrong":
        yield "not a message"


def _handlers() -> dict[str, Any]:
    codec = StringValue.FromString, StringValue.SerializeToString
    return {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo, *codec),
        "Wrong": grpc.unary_unary_rpc_method_handler(_wrong, *codec),
        "Count": grpc.unary_stream_rpc_method_handler(_count, *codec),
    }


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, _handlers())])
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    reflection.enable_server_reflection((SERVICE,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    await server.stop(None)


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Method and code of each call that has ended its span and its metric."""
    seen: list[tuple[str, str]] = []
    end = MethodTelemetry.end

    def recorded(method: MethodTelemetry, span: Any, code: str, began: float) -> None:
        seen.append((method.name, code))
        end(method, span, code, began)

    monkeypatch.setattr(MethodTelemetry, "end", recorded)
    return seen


async def received(call: Any, messages: list[bytes]) -> None:
    async for message in call:
        messages.append(message)  # noqa: PERF401 - those before an error count too


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (received(call, []) if hasattr(call, "__aiter__") else call)
    return raised.value


def unary(channel: grpc.aio.Channel, path: str, body: bytes = b"") -> Any:
    call: Any = channel.unary_unary(path)
    return call(body, timeout=5)


@pytest.mark.parametrize("body", [b"\x00", UNDECODABLE, b"\x0a\x02\xff\xfe", b"\xff" * 100, b"\x0b"])
async def test_a_request_that_cannot_be_decoded_is_internal_without_a_word_of_python(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]], body: bytes
) -> None:
    with structlog.testing.capture_logs() as logs:
        error = await failure(unary(channel, f"/{SERVICE}/Echo", body))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "the request cannot be decoded")
    assert codes == [("Echo", "INTERNAL")]
    (line,) = [line for line in logs if line["event"] == "request cannot be decoded"]
    assert line["method"] == f"/{SERVICE}/Echo"
    assert "exc_info" not in line


@pytest.mark.parametrize("path", [HEALTH, WATCH, REFLECTION])
async def test_the_same_holds_for_health_and_reflection(channel: grpc.aio.Channel, path: str) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield UNDECODABLE

    call: Any = channel.stream_stream(path)
    error = await failure(call(requests(), timeout=5))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "the request cannot be decoded")


async def test_health_and_reflection_answer(channel: grpc.aio.Channel) -> None:
    check: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await check.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watch = check.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
    reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = [answer async for answer in reflected.ServerReflectionInfo(requests)]
    assert [service.name for service in answer.list_services_response.service] == [SERVICE]


async def test_a_response_that_cannot_be_encoded_is_internal(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]]
) -> None:
    with structlog.testing.capture_logs() as logs:
        error = await failure(unary(channel, f"/{SERVICE}/Wrong"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert codes == [("Wrong", "INTERNAL")]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["unexpected error in a gRPC call"]


async def test_a_response_in_a_stream_that_cannot_be_encoded_is_internal(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]]
) -> None:
    stream: Any = channel.unary_stream(f"/{SERVICE}/Count")
    messages: list[bytes] = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await received(stream(StringValue(value="wrong").SerializeToString()), messages)
    assert len(messages) == 3
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert codes == [("Count", "INTERNAL")]


@pytest.mark.parametrize("path", [f"/{SERVICE}/Nothing", "/other.Service/Echo", "/one", "/a/b/c", "/grpc.none/One"])
async def test_an_unknown_method_is_unimplemented_and_its_name_makes_no_series(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]], path: str
) -> None:
    error = await failure(unary(channel, path))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "the method does not exist")
    assert codes == [("_OTHER", "UNIMPLEMENTED")]


async def test_a_message_that_is_too_large_has_a_span_and_a_metric(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]]
) -> None:
    """gRPC's core answers such a call by itself; the server only sees that it has ended."""
    error = await failure(unary(channel, f"/{SERVICE}/Echo", LARGE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await until("the span has ended", lambda: codes == [("Echo", "CANCELLED")])


async def test_a_request_without_a_message_is_unimplemented(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]]
) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    call: Any = channel.stream_unary(f"/{SERVICE}/Echo")
    error = await failure(call(nothing(), timeout=5))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "the request has no message")
    assert codes == [("Echo", "UNIMPLEMENTED")]


async def test_messages_that_can_be_decoded_are_answered(
    channel: grpc.aio.Channel, codes: list[tuple[str, str]]
) -> None:
    body = StringValue(value="kept").SerializeToString()
    assert await unary(channel, f"/{SERVICE}/Echo", body) == body
    stream: Any = channel.unary_stream(f"/{SERVICE}/Count")
    assert len([message async for message in stream(body)]) == 3
    assert codes == [("Echo", "OK"), ("Count", "OK")]
