"""Interceptors around every accepted call: google.rpc.Status errors, server span, caller's deadline, concurrency limit.

Invariant: a handler raises only RpcError; any other exception is a defect, logged and hidden from the caller.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.deadline import remaining, shorten
from chassis.errors import PUSHBACK, RpcError, deadline_exceeded, is_cancelled, to_status, unavailable
from chassis.serving.limiter import Limiter, Outcome
from chassis.serving.messages import MessageInterceptor
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import caller_context, tracer

log = structlog.get_logger(__name__)

Context = Any
Responded = Callable[[], None]
Around = Callable[[str, Context], AbstractAsyncContextManager[Responded]]
"""Wraps a call, given its path; the function it yields is called before each response of a stream."""

_NEARLY_OVER = 0.1
_tracer = tracer()
_duration = meter().create_histogram("rpc.server.duration", "ms", "time from accepting a call to its end")
_INTERNAL = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
_INTERRUPTED = unavailable("UNAVAILABLE", "a part of the service has stopped", 1.0)
# The name that OpenTelemetry's conventions give to values outside a known set: callers must not choose names of series.
_OTHER = "/_OTHER/_OTHER"
_SERVER_FAULTS = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}


class Interceptor(grpc.aio.ServerInterceptor):
    """Runs each handler inside `around(path, context)`, except `exempt` methods, health and reflection."""

    def __init__(self, around: Around, exempt: Collection[str] = (), *, everywhere: bool = False) -> None:
        self._around = around
        self._exempt = frozenset(exempt)
        self._everywhere = everywhere

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc.aio for each call."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        platform = path.startswith("/grpc.") and not self._everywhere
        if handler is None or platform or path in self._exempt:
            return handler
        return _wrapped(handler, path, self._around)


class UnknownMethodInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNIMPLEMENTED for a method that does not exist; such calls share one span name and one metric series."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc.aio for each call."""
        return await continuation(handler_call_details) or _unknown_method()


def _wrapped(handler: Any, path: str, around: Around) -> Any:
    kind = "_".join("stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming))
    inner = getattr(handler, kind)

    async def unary(request: Any, context: Context) -> Any:
        async with around(path, context):
            return await inner(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        # Closed explicitly: after a cancellation the handler's resources must not wait for the garbage collector.
        async with around(path, context) as responded, aclosing(inner(request, context)) as responses:
            async for response in responses:
                responded()
                yield response

    behaviour = stream if inspect.isasyncgenfunction(inner) else unary
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _ignore() -> None:
    """Serves as `Responded` where responses do not matter."""


@asynccontextmanager
async def _errors(path: str, context: Context) -> AsyncIterator[Responded]:
    try:
        yield _ignore
    except RpcError as error:
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        # Something that the handler waited for was cancelled. grpc.aio would send no status, and the caller would wait.
        log.exception("a gRPC call was ended from within", method=path)
        await _abort(context, _INTERRUPTED)
    except Exception:
        log.exception("unexpected error in a gRPC call", method=path)
        await _abort(context, _INTERNAL)


def _unknown_method() -> Any:
    handler: Any = grpc.stream_stream_rpc_method_handler(_unimplemented)
    for around in (_observed, _errors):
        handler = _wrapped(handler, _OTHER, around)
    return handler


async def _unimplemented(_messages: Any, _context: Context) -> AsyncIterator[bytes]:
    raise RpcError(grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD", "the method does not exist")
    yield b""  # makes it a generator


async def _abort(context: Context, error: RpcError) -> None:
    status: Any = rpc_status.to_status(to_status(error))
    # Together with the details: metadata that was set before would be replaced by them.
    pushback = () if error.pushback is None else ((PUSHBACK, str(round(error.pushback * 1000))),)
    try:
        await context.abort(status.code, status.details, (*status.trailing_metadata, *pushback))
    except grpc.aio.InternalError:
        # The core has answered already, or the caller is gone. Only this makes grpc.aio end a call without a log line.
        raise asyncio.CancelledError from None


@asynccontextmanager
async def _observed(path: str, context: Context) -> AsyncIterator[Responded]:
    service, name = path.strip("/").split("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    span = _tracer.start_span(f"{service}/{name}", _caller(context), SpanKind.SERVER, attributes)
    # Each call has its own contextvars, so the span stays current until the last log line and is never detached.
    otel_context.attach(trace.set_span_in_context(span))
    started = time.perf_counter()
    code = "CANCELLED"
    try:
        yield _ignore
        code = "OK"
    except RpcError as error:
        code = error.code.name
        span.set_attribute("error.type", error.reason)
        raise
    except Exception as error:
        code = "INTERNAL"
        span.record_exception(error)
        raise
    finally:
        _record(span, code, attributes, (time.perf_counter() - started) * 1000)


def _record(span: Span, code: str, attributes: dict[str, str], milliseconds: float) -> None:
    span.set_attribute("rpc.grpc.status_code", code)
    if code in _SERVER_FAULTS:
        span.set_status(Status(StatusCode.ERROR, code))
    span.end()
    _duration.record(milliseconds, {**attributes, "rpc.grpc.status_code": code})
    log.debug("call", method=attributes["rpc.method"], code=code, milliseconds=round(milliseconds, 1))


@asynccontextmanager
async def _within_deadline(_path: str, context: Context) -> AsyncIterator[Responded]:
    shorten(context.time_remaining())
    try:
        yield _ignore
    except TimeoutError:
        if remaining() == 0:
            raise deadline_exceeded() from None
        raise


def _caller(context: Context) -> Any:
    metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
    parents, states = ([value for key, value in metadata if key == name] for name in ("traceparent", "tracestate"))
    return caller_context(parents, states)


INTERCEPTORS = (
    UnknownMethodInterceptor(),
    Interceptor(_errors, everywhere=True),
    Interceptor(_observed),
    Interceptor(_within_deadline),
    MessageInterceptor(),
)


def _ended_by_deadline(error: BaseException, given: float | None) -> bool:
    """True if the deadline ended a call that had `given` seconds, however the handler noticed it."""
    if isinstance(error, RpcError):
        return error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    left = remaining()
    # The timer of the caller may cancel the call shortly before ours.
    cut = given is not None and left is not None and left <= given * _NEARLY_OVER
    return cut and isinstance(error, TimeoutError | asyncio.CancelledError)


def limited(limiter: Limiter, exempt: Collection[str] = (), urgent: Collection[str] = ()) -> tuple[Any, ...]:
    """Returns all interceptors and, innermost, the concurrency limit: a rejected call has a span and a metric too.

    `exempt` methods take no permit; `urgent` ones may also use the reserve. A stream holds its permit until its first
    response.
    """

    @asynccontextmanager
    async def with_permit(path: str, _context: Context) -> AsyncIterator[Responded]:
        permit, given, outcome = limiter.acquire(urgent=path in urgent), remaining(), Outcome.OTHER
        try:
            yield lambda: limiter.release(permit, Outcome.ANSWERED)
            outcome = Outcome.ANSWERED
        except (Exception, asyncio.CancelledError) as error:
            outcome = Outcome.DEADLINE if _ended_by_deadline(error, given) else Outcome.OTHER
            raise
        finally:
            limiter.release(permit, outcome)

    return (*INTERCEPTORS, Interceptor(with_permit, exempt))
