"""Records each request: a server span, a metric and a log line, however the request ends.

Invariant: a request body is never logged. Health probes, which come every second, leave no span and no log line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

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
from sanic import Request

from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import caller_context, traceparent, tracer

log = structlog.get_logger(__name__)

PROBE_PATHS = {"/livez", "/readyz"}
_CLIENT_CLOSED_REQUEST = 499
# As the semantic conventions of OpenTelemetry name them; every other method is one value.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER_METHOD = "_OTHER"
_SCHEMES = frozenset({"http", "https"})
_ids = RandomIdGenerator()


@contextmanager
def recorded(request: Request) -> Iterator[None]:
    """Runs the block in the server span of a request, which continues the caller's trace.

    Sets `client_address`, `trace_id`, `traceresponse` and `status` of the request's context; the last is 499 until a
    response begins.
    """
    began = time.perf_counter()
    request.ctx.client_address = _client_address(request)
    with _span(request) as span:
        context = span.get_span_context()
        request.ctx.trace_id = f"{context.trace_id:032x}"
        request.ctx.traceresponse = traceparent(span)
        request.ctx.status = _CLIENT_CLOSED_REQUEST
        try:
            yield
        finally:
            status, route = request.ctx.status, _route(request)
            span.update_name(_span_name(request, route))
            span.set_attributes(_response_attributes(status, route))
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            if route not in PROBE_PATHS:
                _report(request, status, route, time.perf_counter() - began)


def _span(request: Request) -> AbstractContextManager[Span]:
    headers = request.headers
    parent = caller_context(headers.getall("traceparent", ()), headers.getall("tracestate", ()))
    if request.path in PROBE_PATHS:
        trace_id = get_current_span(parent).get_span_context().trace_id or _ids.generate_trace_id()
        return use_span(NonRecordingSpan(SpanContext(trace_id, _ids.generate_span_id(), is_remote=False)))
    return tracer().start_as_current_span(
        _span_name(request, ""),
        context=parent,
        kind=SpanKind.SERVER,
        attributes=_request_attributes(request),
        record_exception=False,
    )


def _client_address(request: Request) -> str:
    """Returns the last address of X-Forwarded-For, which the edge appends, if the edge has sent the request.

    Otherwise it returns the address of the peer, because anybody else could write any address into the header.
    """
    peer = str(request.ip)
    if not _is_within(peer, tuple(request.app.config.TRUSTED_PROXIES)):
        return peer
    last = ",".join(request.headers.getall("x-forwarded-for", ())).rpartition(",")[2].strip()
    try:
        return str(ip_address(last))
    except ValueError:
        return peer


@lru_cache(maxsize=4096)
def _is_within(address: str, networks: Sequence[str]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket has no address
        return False
    return any(parsed in ip_network(network) for network in networks)


def _span_name(request: Request, route: str) -> str:
    method = request.method if request.method in _METHODS else "HTTP"
    return f"{method} {route}" if route else method


def _request_attributes(request: Request) -> dict[str, str]:
    return {
        **_labels(request),
        **({} if request.method in _METHODS else {"http.request.method_original": request.method}),
        "url.path": request.path,
        "network.protocol.version": request.version,
        "client.address": request.ctx.client_address,
        # Bytes that are no UTF-8 cannot be sent to telemetry.
        "user_agent.original": request.headers.get("user-agent", "").encode(errors="replace").decode(),
    }


def _labels(request: Request) -> dict[str, str]:
    """Returns the attributes of the metric and the span, whose values a caller can only choose from a fixed set."""
    return {
        "http.request.method": request.method if request.method in _METHODS else _OTHER_METHOD,
        "url.scheme": request.scheme if request.scheme in _SCHEMES else "http",
    }


def _response_attributes(status: int, route: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"http.response.status_code": status}
    if route:
        attributes["http.route"] = route
    if status >= 500 or status == _CLIENT_CLOSED_REQUEST:
        attributes["error.type"] = str(status)
    return attributes


def _route(request: Request) -> str:
    return _template(request.route.path) if request.route else ""


@cache
def _template(path: str) -> str:
    """Returns `v1/orders/<id:str>` as `/v1/orders/{id}`."""
    return "/" + re.sub(r"<(\w+)[^>]*>", r"{\1}", path)


@cache
def _durations() -> Any:
    return meter().create_histogram(
        "http.server.request.duration", unit="s", description="time from head to last byte of the response"
    )


def _report(request: Request, status: int, route: str, seconds: float) -> None:
    _durations().record(seconds, _labels(request) | _response_attributes(status, route))
    log.info(
        "request",
        method=request.method,
        path=request.path,
        client=request.ctx.client_address,
        route=route,
        status=status,
        milliseconds=round(seconds * 1000, 1),
    )
