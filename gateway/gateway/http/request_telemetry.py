"""Records each request: a server span, a metric and a log line, however the request ends.

Invariant: a request body is never logged. Health probes, which come every second, leave no span and no log line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from sanic import Request

from chassis.telemetry.logs import is_slow
from chassis.telemetry.metrics import Durations, DurationSeries
from chassis.telemetry.traces import caller_context, start_entry_span, traceparent, unrecorded_span

log = structlog.get_logger(__name__)

PROBE_PATHS = {"/livez", "/readyz"}
_CLIENT_CLOSED_REQUEST = 499
# As the semantic conventions of OpenTelemetry name them; every other method is one value.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER_METHOD = "_OTHER"
_TRACE_ID = slice(3, 35)
_EDGE_MARK = "x-edge-recorded"  # the edge removes it from the requests of its callers
_LONGEST_ADDRESS = 45  # an IPv6 address with an IPv4 address in it
# Those of the semantic conventions: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_durations = Durations("http.server.request.duration", "s", "time from head to last byte of the response", _BOUNDS)


def recorded(request: Request) -> RecordedRequest:
    """Returns a context manager, whose block runs in the server span of a request and in the trace of the caller.

    It sets `client_address`, `trace_id`, `traceresponse` and `status` of the request's context; the last is 499 until
    `begin_response` is called.
    """
    return RecordedRequest(request)


def begin_response(request: Request, status: int) -> None:
    """Notes the status of a response, and that the request has been answered; a stream may follow."""
    request.ctx.status = status
    request.ctx.answered = time.perf_counter()


class RecordedRequest:
    """See `recorded`; a class, because a generator for each request costs more."""

    __slots__ = ("_began", "_request", "_span", "_token")

    def __init__(self, request: Request) -> None:
        self._request = request

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        context = self._request.ctx
        context.client_address = _client_address(self._request)
        self._span = _start_span(self._request)
        context.traceresponse = traceparent(self._span)
        context.trace_id = context.traceresponse[_TRACE_ID]
        context.status = _CLIENT_CLOSED_REQUEST
        self._token = otel_context.attach(set_span_in_context(self._span))

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        request, status, route = self._request, self._request.ctx.status, _route(self._request)
        try:
            if self._span.is_recording():
                _complete_span(self._span, request, route, error)
            if route not in PROBE_PATHS:
                self._report(status, route)
        finally:
            otel_context.detach(self._token)

    def _report(self, status: int, route: str) -> None:
        request, ended = self._request, time.perf_counter()
        seconds = ended - self._began
        _series(_method(request), _scheme(request), status, route).record(seconds, self._span)
        slow = is_slow(getattr(request.ctx, "answered", ended) - self._began)
        (log.warning if slow or status >= 500 else log.info)(
            "request",
            method=request.method,
            path=request.path,
            client=request.ctx.client_address,
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 1),
        )


def _start_span(request: Request) -> Span:
    parents = request.headers.getall("traceparent", ())
    caller = caller_context(parents, request.headers.getall("tracestate", ())) if parents else None
    if request.path in PROBE_PATHS:
        return unrecorded_span(caller)
    return start_entry_span(
        _span_name(request.method),
        caller,
        kind=SpanKind.SERVER,
        attributes=lambda: _request_attributes(request),
        recorded_before=_EDGE_MARK in request.headers and _is_from_edge(request),
    )


def _complete_span(span: Span, request: Request, route: str, error: BaseException | None) -> None:
    status = request.ctx.status
    span.update_name(f"{_span_name(request.method)} {route}" if route else _span_name(request.method))
    span.set_attributes(_response_attributes(status, route))
    if caller := getattr(request.ctx, "caller", ""):
        span.set_attribute("mesh.caller", caller)
    if isinstance(error, Exception):
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    elif status >= 500:
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _client_address(request: Request) -> str:
    """Returns the last address of X-Forwarded-For, which the edge appends, if the edge has sent the request.

    Otherwise it returns the address of the peer, because anybody else could write any address into the header.
    """
    peer = str(request.ip)
    if not _is_from_edge(request):
        return peer
    values = request.headers.getall("x-forwarded-for", ())
    last = values[-1].rpartition(",")[2].strip() if values else ""
    return (_valid_address(last) if len(last) <= _LONGEST_ADDRESS else "") or peer


def _is_from_edge(request: Request) -> bool:
    app: Any = request.app
    return _is_within(str(request.ip), app.trusted_proxies)


@lru_cache(maxsize=4096)
def _is_within(address: str, networks: Sequence[str]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket has no address
        return False
    return any(parsed in ip_network(network) for network in networks)


@lru_cache(maxsize=4096)
def _valid_address(text: str) -> str:
    """Returns an address in its usual form, "" if the text is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def _method(request: Request) -> str:
    """Returns the method; all that a caller invents are one, so that nobody can create series."""
    return request.method if request.method in _METHODS else _OTHER_METHOD


def _scheme(request: Request) -> str:
    """Returns the scheme of the connection; no header of a caller changes it."""
    return "https" if request.conn_info and request.conn_info.ssl else "http"


def _span_name(method: str) -> str:
    return method if method in _METHODS else "HTTP"


def _request_attributes(request: Request) -> dict[str, str]:
    return {
        "http.request.method": _method(request),
        "url.scheme": _scheme(request),
        **({} if request.method in _METHODS else {"http.request.method_original": request.method}),
        "url.path": request.path,
        "network.protocol.version": request.version,
        "client.address": request.ctx.client_address,
        # Bytes that are no UTF-8 cannot be sent to telemetry.
        "user_agent.original": request.headers.get("user-agent", "").encode(errors="replace").decode(),
    }


def _response_attributes(status: int, route: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"http.response.status_code": status}
    if route:
        attributes["http.route"] = route
    if status >= 500 or status == _CLIENT_CLOSED_REQUEST:
        attributes["error.type"] = str(status)
    return attributes


@cache
def _series(method: str, scheme: str, status: int, route: str) -> DurationSeries:
    """Returns the series of the metric; each argument has a fixed set of values."""
    labels = {"http.request.method": method, "url.scheme": scheme}
    return _durations.series(labels | _response_attributes(status, route))


def _route(request: Request) -> str:
    return _template(request.route.path) if request.route else ""


@cache
def _template(path: str) -> str:
    """Returns `v1/orders/<id:str>` as `/v1/orders/{id}`."""
    return "/" + re.sub(r"<(\w+)[^>]*>", r"{\1}", path)
