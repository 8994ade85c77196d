"""Runs the handler of a method within telemetry, the checks of caller and user, deadline and limit, in this order.

Everything is in one function for each kind of call, because each layer around it would be paid for at each call.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from opentelemetry.trace import Span

from chassis.auth.acting_user import token_expired
from chassis.deadline import shorten
from chassis.errors import RpcError
from chassis.serving.authorization import Authorization, Stream, UserCheck
from chassis.serving.call_errors import answer_error, with_deadline
from chassis.serving.call_telemetry import MethodTelemetry
from chassis.serving.limiter import Limiter, Outcome, Permit
from chassis.serving.messages import receiver

Context = Any
Messages = AsyncIterator[bytes]

# The name that OpenTelemetry's conventions give to values outside a known set: callers must not choose names of series.
_OTHER = "/_OTHER/_OTHER"
# The caller ends a stream when the token does; with this, its end comes first, also if its clock is a little behind.
_TOKEN_GRACE_SECONDS = 1.0
_END: Any = object()


@dataclass(frozen=True, slots=True)
class MethodLimit:
    """The concurrency limit of a method; calls of an `urgent` one may also use the reserve."""

    limiter: Limiter
    urgent: bool

    def acquire(self) -> Permit:
        """Returns a permit; raises RpcError at the limit."""
        return self.limiter.acquire(urgent=self.urgent)


class _Call:
    """A call in progress: its span, its caller, its start by `time.perf_counter`, and its permit once it has one.

    In a mesh `stream` says whether a stream may go on.
    """

    __slots__ = ("began", "caller", "permit", "span", "stream")

    def __init__(self) -> None:
        self.span: Span | None = None
        self.caller = ""
        self.began = time.perf_counter()
        self.permit: Permit | None = None
        self.stream: Stream | None = None


class MethodHandler:
    """Answers the calls of one method with the function of its service.

    Without `telemetry`, a call has no span and no metric, and its deadline is left to the function; without
    `authorization`, anybody may call; without `limit`, it takes no permit; without `check_user`, it acts for nobody.
    """

    def __init__(
        self,
        handler: Any,
        path: str,
        telemetry: MethodTelemetry | None,
        authorization: Authorization | None = None,
        limit: MethodLimit | None = None,
        *,
        check_user: UserCheck | None = None,
    ) -> None:
        kind = "_".join(
            "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
        )
        self._inner = getattr(handler, kind)
        self._path = path
        self._telemetry = telemetry
        self._authorization = authorization
        self._limit = limit
        self._check_user = check_user
        self._receive = receiver(handler, path)
        self._serializer = handler.response_serializer
        self._encode = handler.response_serializer or bytes
        self._streams = handler.response_streaming

    def of_bytes(self) -> Any:
        """Returns the handler for grpc.aio, which passes undecoded messages."""
        if not self._streams:
            return grpc.stream_unary_rpc_method_handler(self._unary)
        if inspect.isasyncgenfunction(self._inner):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if self._check_user is not None:
            raise TypeError(f"{self._path}: the end of a user's token ends a stream only if it is an async generator")
        # It sends its responses with `context.write`, which uses the serializer of the handler.
        return grpc.stream_stream_rpc_method_handler(self._writing, response_serializer=self._serializer)

    async def _unary(self, messages: Messages, context: Context) -> bytes:
        call = _Call()
        try:
            self._begin(call, context)
            request = await self._receive(messages, context)
            if self._check_user is not None:
                await self._check_user(context, call.caller, request)
            self._acquire(call)
            response = await self._inner(request, context)
            self._release(call)
            body: bytes = self._encode(response)
        except BaseException as error:
            await self._fail(call, context, error)
        self._end(call, "OK")
        return body

    async def _stream(self, messages: Messages, context: Context) -> AsyncIterator[bytes]:
        call = _Call()
        try:
            self._begin(call, context)
            request = await self._receive(messages, context)
            ends_at = await self._check_user(context, call.caller, request) if self._check_user is not None else None
            self._acquire(call)
            responses = self._inner(request, context)
            # Closed explicitly: after a cancellation its resources must not wait for the garbage collector.
            async with aclosing(responses if ends_at is None else _while_valid(responses, ends_at)) as valid:
                async for response in valid:
                    if call.stream is not None:
                        call.stream.require_allowed()
                    self._release(call)
                    yield self._encode(response)
            self._release(call)
        except BaseException as error:
            await self._fail(call, context, error)
        self._end(call, "OK")

    async def _writing(self, messages: Messages, context: Context) -> None:
        call = _Call()
        try:
            self._begin(call, context)
            request = await self._receive(messages, context)
            self._acquire(call)
            await self._inner(request, context)
            self._release(call)
        except BaseException as error:
            await self._fail(call, context, error)
        self._end(call, "OK")

    def _begin(self, call: _Call, context: Context) -> None:
        if self._telemetry is not None:
            call.span = self._telemetry.begin(context)
        if self._authorization is not None:
            call.caller = self._authorization.check(context, self._path)
            if self._streams:
                call.stream = self._authorization.follow(context, call.caller, self._path)
            if call.span is not None:
                call.span.set_attribute("mesh.caller", call.caller)
        if self._telemetry is not None:
            shorten(context.time_remaining())

    def _acquire(self, call: _Call) -> None:
        if self._limit is not None:
            call.permit = self._limit.acquire()

    def _release(self, call: _Call) -> None:
        """Releases the permit after an answer. A stream holds its permit until its first response."""
        if call.permit is not None and self._limit is not None:
            self._limit.limiter.release(call.permit, Outcome.ANSWERED)
            call.permit = None

    def _end(self, call: _Call, code: str) -> None:
        if self._telemetry is not None and call.span is not None:
            self._telemetry.end(call.span, code, call.began)

    async def _fail(self, call: _Call, context: Context, error: BaseException) -> NoReturn:
        """Releases the permit, records the error and answers with it; raises what ends the call in grpc.aio."""
        if self._authorization is not None:
            error = self._authorization.denial(error)
        if call.span is not None and call.stream is not None and call.stream.denial is error:
            call.span.set_attribute("mesh.denied", call.stream.denial.reason)
        if call.permit is not None and self._limit is not None:
            self._limit.limiter.release_failed(call.permit, error)
        if call.span is not None:
            error = with_deadline(error)
            self._end(call, _code_of(error, call.span))
        await answer_error(error, self._path, context)


def unknown_method(authorization: Authorization | None) -> Any:
    """Returns the handler of methods that do not exist; their calls share one span name and one metric series."""

    async def unimplemented(_request: Any, _context: Context) -> None:
        raise RpcError(grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD", "the method does not exist")

    handler: Any = grpc.stream_stream_rpc_method_handler(unimplemented)
    return MethodHandler(handler, _OTHER, MethodTelemetry(_OTHER), authorization).of_bytes()


async def _while_valid(responses: AsyncGenerator[Any, None], ends_at: float) -> AsyncGenerator[Any, None]:
    """Yields the responses of a stream until the token of its user ends (Unix time); raises RpcError(TOKEN_EXPIRED)."""
    loop = asyncio.get_running_loop()
    due = loop.time() + ends_at + _TOKEN_GRACE_SECONDS - time.time()
    async with aclosing(responses):
        while True:
            try:
                async with asyncio.timeout_at(due) as timeout:
                    response = await anext(responses, _END)
            except TimeoutError:
                if timeout.expired():
                    raise token_expired() from None
                raise
            if response is _END:
                return
            if loop.time() >= due:  # a stream that always has a message never waits
                raise token_expired()
            yield response


def _code_of(error: BaseException, span: Span) -> str:
    """Returns the code of a failed call and adds the error to its span."""
    if isinstance(error, RpcError):
        span.set_attribute("error.type", error.reason)
        return error.code.name
    if isinstance(error, Exception):
        span.record_exception(error)
        return "INTERNAL"
    return "CANCELLED"
