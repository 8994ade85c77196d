"""What every accepted call goes through: errors to google.rpc.Status, a server span, the limit, the caller's deadline.

Invariant: a handler raises RpcError or nothing; anything else is a defect, logged here and hidden from the caller.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.deadline import limit, remaining
from chassis.errors import PUSHBACK, RpcError, deadline_exceeded, to_status
from chassis.serving.limiter import Limiter, Place
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import remote_context, tracer

log = structlog.get_logger(__name__)

Context = Any
Around = Callable[[str, Context], AbstractAsyncContextManager[None]]

_tracer = tracer()
_duration = meter().create_histogram("rpc.server.duration", "ms", "time from accepting a call to its end")
_INTERNAL = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
_OWN_FAULTS = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}


class Interceptor(grpc.aio.ServerInterceptor):
    """Runs a handler inside `around(path, context)`; health and reflection are left alone."""

    def __init__(self, around: Around) -> None:
        self._around = around

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc.aio for each call."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.startswith("/grpc."):
            return handler
        return _wrapped(handler, path, self._around)


class Limit(grpc.aio.ServerInterceptor):
    """Gives each call a place of the limiter, a stream until its first answer; `exempt` methods need none."""

    def __init__(self, limiter: Limiter, exempt: Collection[str] = ()) -> None:
        self._limiter = limiter
        self._exempt = frozenset(exempt)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc.aio for each call."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.startswith("/grpc.") or path in self._exempt:
            return handler
        return _limited(handler, self._limiter)


def _limited(handler: Any, limiter: Limiter) -> Any:
    kind = _kind(handler)
    inner = getattr(handler, kind)

    async def answer(request: Any, context: Context) -> Any:
        with _place(limiter):
            return await inner(request, context)

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        with _place(limiter) as place:
            async with aclosing(inner(request, context)) as items:
                async for item in items:
                    limiter.release(place)
                    yield item

    return _handler(handler, kind, answers if inspect.isasyncgenfunction(inner) else answer)


@contextmanager
def _place(limiter: Limiter) -> Iterator[Place]:
    place, answered = limiter.admit(), False
    try:
        yield place
        answered = True
    except TimeoutError:
        answered = True
        raise
    finally:
        # A refusal is quick and a caller that hangs up is early: neither says how long work takes.
        limiter.release(place, measured=answered)


def _wrapped(handler: Any, path: str, around: Around) -> Any:
    kind = _kind(handler)
    inner = getattr(handler, kind)

    async def answer(request: Any, context: Context) -> Any:
        async with around(path, context):
            return await inner(request, context)

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        # Closed here and now: what the handler holds must not wait for the collector when the caller has gone.
        async with around(path, context), aclosing(inner(request, context)) as items:
            async for item in items:
                yield item

    return _handler(handler, kind, answers if inspect.isasyncgenfunction(inner) else answer)


def _kind(handler: Any) -> str:
    asked, told = ("stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming))
    return f"{asked}_{told}"


def _handler(like: Any, kind: str, behaviour: Callable[..., Any]) -> Any:
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(behaviour, like.request_deserializer, like.response_serializer)


@asynccontextmanager
async def _errors(path: str, context: Context) -> AsyncIterator[None]:
    try:
        yield
    except RpcError as error:
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:
        log.exception("call failed", method=path)
        await _abort(context, _INTERNAL)


async def _abort(context: Context, error: RpcError) -> None:
    if error.pushback is not None:
        context.set_trailing_metadata(((PUSHBACK, str(round(error.pushback * 1000))),))
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


@asynccontextmanager
async def _observed(path: str, context: Context) -> AsyncIterator[None]:
    service, name = path.strip("/").split("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    span = _tracer.start_span(f"{service}/{name}", _caller(context), SpanKind.SERVER, attributes)
    # Each call has its own contextvars, so the span stays current to the last log line and is never detached.
    otel_context.attach(trace.set_span_in_context(span))
    started = time.perf_counter()
    code = "CANCELLED"
    try:
        yield
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
        _finish(span, code, attributes, (time.perf_counter() - started) * 1000)


def _finish(span: Span, code: str, attributes: dict[str, str], milliseconds: float) -> None:
    span.set_attribute("rpc.grpc.status_code", code)
    if code in _OWN_FAULTS:
        span.set_status(Status(StatusCode.ERROR, code))
    span.end()
    _duration.record(milliseconds, {**attributes, "rpc.grpc.status_code": code})
    log.debug("call", method=attributes["rpc.method"], code=code, milliseconds=round(milliseconds, 1))


@asynccontextmanager
async def _in_time(_path: str, context: Context) -> AsyncIterator[None]:
    limit(context.time_remaining())
    try:
        yield
    except TimeoutError:
        if remaining() == 0:
            raise deadline_exceeded() from None
        raise


def _caller(context: Context) -> Any:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return remote_context(str(value))
    return None


INTERCEPTORS = (Interceptor(_errors), Interceptor(_observed), Interceptor(_in_time))


def limited(limiter: Limiter, exempt: Collection[str] = ()) -> tuple[Any, ...]:
    """All of them, with a limit on what is taken on; what is refused is seen like any call."""
    return (*INTERCEPTORS, Limit(limiter, exempt))
