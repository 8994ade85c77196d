"""What the interceptor adds to a call of a method: its handler is made once, its errors have a meaning for callers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from support.waiting import until

from chassis.deadline import remaining
from chassis.errors import RpcError
from chassis.serving.interceptor import CallInterceptor

from ..backends import Backends, error_of
from ..echo_service import SAY, echo, endless


class Details:
    """What grpc.aio passes to an interceptor."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


async def handler_of(interceptor: CallInterceptor, path: str, found: Any) -> Any:
    async def find(_details: Any) -> Any:
        return found

    return await interceptor.intercept_service(find, Details(path))


def handler() -> Any:
    return grpc.unary_unary_rpc_method_handler(echo, StringValue.FromString, StringValue.SerializeToString)


async def test_the_handler_of_a_method_is_made_once_for_each_server() -> None:
    first, second = CallInterceptor(), CallInterceptor()
    made = await handler_of(first, SAY, handler())
    assert await handler_of(first, SAY, handler()) is made
    assert await handler_of(first, "/test.Echo/Read", handler()) is not made
    assert await handler_of(second, SAY, handler()) is not made


async def test_paths_of_unknown_methods_are_not_kept() -> None:
    interceptor = CallInterceptor()
    answers = {id(await handler_of(interceptor, f"/test.Echo/{number}", None)) for number in range(100)}
    assert len(answers) == 1
    assert not interceptor._handlers


async def test_the_deadline_of_the_caller_is_that_of_the_handler(backends: Backends) -> None:
    async def seconds_left(_text: str, _context: Any) -> str:
        return str(remaining())

    await backends.start(seconds_left)
    # gRPC sends a timeout of some seconds in hundredths, rounded up.
    assert 5 < float(await backends.stub.say("x", timeout=8)) <= 8.01


async def test_a_timeout_at_the_deadline_is_deadline_exceeded(backends: Backends) -> None:
    ended: list[float | None] = []

    async def wait(_text: str, context: Any) -> str:
        try:
            async with asyncio.timeout(context.time_remaining()):
                await asyncio.Event().wait()
        finally:
            ended.append(remaining())
        return ""

    await backends.start(wait)
    assert (await error_of(backends.stub.say("x", timeout=0.2))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until("the handler has ended", lambda: len(ended) == 1)


async def test_a_timeout_before_the_deadline_is_a_defect(backends: Backends) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise TimeoutError

    await backends.start(fail)
    assert (await error_of(backends.stub.say("x", timeout=8))).reason == "INTERNAL"


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_call_that_is_cancelled_from_within_is_answered_and_logged(backends: Backends, stream: bool) -> None:
    async def ended(_text: str, _context: Any) -> str:
        raise asyncio.CancelledError

    backends.change(attempts=1)
    await backends.start(ended)
    with structlog.testing.capture_logs() as logs:
        error = await error_of(backends.stub.count(1) if stream else backends.stub.say("x"))
    assert (error.code, error.message) == (grpc.StatusCode.UNAVAILABLE, "a part of the service has stopped")
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["a gRPC call was ended from within"]


async def test_an_unexpected_error_is_logged_with_its_cause_and_hidden_from_the_caller(backends: Backends) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise ValueError("the secret")

    await backends.start(fail)
    with structlog.testing.capture_logs() as logs:
        error = await error_of(backends.stub.say("x"))
    assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "internal error")
    (line,) = [line for line in logs if line["event"] == "unexpected error in a gRPC call"]
    assert line["method"] == SAY
    assert isinstance(line["exc_info"], ValueError)


async def test_the_details_of_an_error_reach_the_caller(backends: Backends) -> None:
    async def reject(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "no", {"name": "is empty"})

    await backends.start(reject)
    error = await error_of(backends.stub.say("x"))
    assert (error.code, error.reason, error.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID", {"name": "is empty"}
    )  # fmt: skip


async def test_the_handler_of_a_cancelled_stream_is_closed(backends: Backends) -> None:
    ended: list[str] = []
    await backends.start(endless(ended))
    responses = backends.stub.Count(StringValue(value="1"))
    assert (await anext(responses)).value == "0"
    await responses.aclose()
    await until("the handler has ended", lambda: ended == ["1"])
