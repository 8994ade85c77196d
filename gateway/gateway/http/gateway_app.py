"""The HTTP server around the routes: limits, and for each request a span, a metric and a log line.

Invariant: every answer of this process carries `traceresponse`, also one that no route gave (docs/adr/0013 says what
Traefik answers before it); a request body is never logged. The probes that come every second are answered like any
request, but leave no span and no line behind.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any, cast

import structlog
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    use_span,
)
from sanic import Request, Sanic
from sanic.config import Config
from sanic.exceptions import RequestCancelled, SanicException, ServiceUnavailable
from sanic.http import Http
from sanic.response import BaseHTTPResponse

from chassis.errors import RpcError
from chassis.serving.limiter import Limiter, LimiterSettings
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import remote_context, traceparent, tracer
from gateway.http.header_validation import Head, Verbs
from gateway.http.problems import Problems
from gateway.settings import Settings

log = structlog.get_logger(__name__)

_SECURITY = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
}
_CLIENT_GONE = 499
_DISCARD_BYTES = 2**25
_DISCARD_SECONDS = 10.0
_PROBES = {"/livez", "/readyz"}
_CANCEL = re.compile(r"/v1/orders/[^/]+/cancel")
_ids = RandomIdGenerator()


class Edge(Sanic[Config, Any]):
    """Sanic with one `exchange` around each request, however it ends."""

    __slots__ = ("limiter",)
    limiter: Limiter

    def bound(self, settings: Settings) -> None:
        """Give every connection that comes from now on the limits of these settings."""
        self.config.update(
            REQUEST_MAX_SIZE=settings.body_limit_bytes,
            REQUEST_TIMEOUT=settings.request_seconds,
            RESPONSE_TIMEOUT=settings.response_seconds,
            KEEP_ALIVE_TIMEOUT=settings.keep_alive_seconds,
        )

    async def handle_request(self, request: Request) -> None:
        with exchange(request):
            if request.path in _PROBES or _CANCEL.fullmatch(request.path):
                await super().handle_request(request)
            else:
                await self._limited(request)
        await _discard(request)

    async def _limited(self, request: Request) -> None:
        try:
            request.ctx.place = self.limiter.admit()
        except RpcError as refusal:
            return await self.handle_exception(request, refusal)
        try:
            await super().handle_request(request)
        finally:
            self.limiter.release(request.ctx.place, measured=False)

    async def handle_exception(self, request: Request, exception: BaseException, run_middleware: bool = True) -> None:
        if isinstance(exception, RequestCancelled):
            return  # the client has gone: no fault of ours, and nobody to answer
        if hasattr(request.ctx, "trace_id"):
            await super().handle_exception(request, exception, run_middleware)
        else:
            # Broken before it could be routed: a head too large, a malformed request line.
            with exchange(request):
                await super().handle_exception(request, exception, run_middleware)
        if isinstance(exception, ServiceUnavailable) and isinstance(request.stream, Http):
            request.stream.request_body = None  # the rest of it is not waited for: no timeout would end that


def make(name: str, settings: Settings, context: object, limits: Callable[[], LimiterSettings]) -> Edge:
    """An app without routes, with limits tightened to the settings; routes find `context` as `app.ctx`."""
    config = Config(env_prefix=None)
    config.update(ACCESS_LOG=False, MOTD=False)
    app = Edge(
        name,
        config=config,
        ctx=context,
        router=Verbs(),
        error_handler=Problems(),
        request_class=Head,
        configure_logging=False,
    )
    app.limiter = Limiter("gateway", limits)
    app.bound(settings)
    app.register_middleware(_stamp, "response")
    return app


@contextmanager
def exchange(request: Request) -> Iterator[None]:
    """The server span of a request, continuing the caller's trace; metric and access log when it ends."""
    began = time.perf_counter()
    with _span(request) as current:
        context = current.get_span_context()
        request.ctx.trace_id = f"{context.trace_id:032x}"
        request.ctx.traceresponse = traceparent(current)
        request.ctx.status = _CLIENT_GONE
        try:
            yield
        finally:
            status, route = request.ctx.status, _route(request)
            current.update_name(f"{request.method} {route}" if route else request.method)
            current.set_attributes(_answered(status, route))
            if status >= 500:
                current.set_status(Status(StatusCode.ERROR))
            if route not in _PROBES:
                _report(request, status, route, time.perf_counter() - began)


def _span(request: Request) -> AbstractContextManager[Span]:
    parent = remote_context(request.headers.get("traceparent", ""))
    if request.path in _PROBES:
        trace_id = get_current_span(parent).get_span_context().trace_id or _ids.generate_trace_id()
        return use_span(NonRecordingSpan(SpanContext(trace_id, _ids.generate_span_id(), is_remote=False)))
    return tracer().start_as_current_span(
        request.method,
        context=parent,
        kind=SpanKind.SERVER,
        attributes=_asked(request),
        record_exception=False,
    )


async def _discard(request: Request) -> None:
    """Read what is left of a body that nobody wanted: a client that is still sending would not see the answer."""
    stream = request.stream
    if not isinstance(stream, Http) or not stream.request_body:
        return
    stream.request_max_size = _DISCARD_BYTES
    with suppress(TimeoutError, SanicException):
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for _ in stream:
                pass
    if stream.request_body:
        stream.keep_alive, stream.request_body = False, None


def _stamp(request: Request, response: BaseHTTPResponse) -> None:
    if hasattr(request.ctx, "place"):
        # Here a stream has only begun: from now on it is its own business, and no measure of the load.
        cast(Edge, request.app).limiter.release(
            request.ctx.place, measured=response.status < 400 or response.status == 504
        )
    request.ctx.status = response.status
    response.headers["traceresponse"] = request.ctx.traceresponse
    for name, value in _SECURITY.items():
        response.headers.setdefault(name, value)


def _asked(request: Request) -> dict[str, str]:
    return {
        "http.request.method": request.method,
        "url.path": request.path,
        "url.scheme": request.scheme,
        "network.protocol.version": request.version,
        "client.address": request.ip,
        # Bytes that are no UTF-8 cannot be sent to telemetry.
        "user_agent.original": request.headers.get("user-agent", "").encode(errors="replace").decode(),
    }


def _answered(status: int, route: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"http.response.status_code": status}
    if route:
        attributes["http.route"] = route
    if status >= 500 or status == _CLIENT_GONE:
        attributes["error.type"] = str(status)
    return attributes


def _route(request: Request) -> str:
    return _template(request.route.path) if request.route else ""


@cache
def _template(path: str) -> str:
    """`v1/orders/<id:str>` as `/v1/orders/{id}`."""
    return "/" + re.sub(r"<(\w+)[^>]*>", r"{\1}", path)


@cache
def _durations() -> Any:
    return meter().create_histogram(
        "http.server.request.duration", unit="s", description="time from head to last byte of the answer"
    )


def _report(request: Request, status: int, route: str, seconds: float) -> None:
    labels = {"http.request.method": request.method, "url.scheme": request.scheme}
    _durations().record(seconds, labels | _answered(status, route))
    log.info(
        "request",
        method=request.method,
        path=request.path,
        route=route,
        status=status,
        milliseconds=round(seconds * 1000, 1),
    )
