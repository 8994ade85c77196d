"""The server span and the duration metric of each call, and the trace that it continues.

What is the same for all calls of a method (names, attributes, series) is made once.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.telemetry.metrics import Durations, DurationSeries
from chassis.telemetry.traces import caller_context, start_span

log = structlog.get_logger(__name__)

_durations = Durations("rpc.server.duration", "ms", "time from accepting a call to its end")
_SERVER_FAULTS = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}


class MethodTelemetry:
    """Records the calls of one method: `span = begin(context)`, then `end(span, code, began)`."""

    def __init__(self, path: str) -> None:
        service, self.name = path.strip("/").split("/")
        self._span_name = f"{service}/{self.name}"
        self._attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": self.name}
        self._series: dict[str, DurationSeries] = {}

    def begin(self, context: Any) -> Span:
        """Starts the span of a call, which stays current until the last log line of the call."""
        span = start_span(self._span_name, parent=_caller(context), kind=SpanKind.SERVER, attributes=self._attributes)
        # Each call has its own contextvars, so this is never detached.
        otel_context.attach(trace.set_span_in_context(span))
        return span

    def end(self, span: Span, code: str, began: float) -> None:
        """Ends the span and records the time since `began`, a value of `time.perf_counter`."""
        milliseconds = (time.perf_counter() - began) * 1000
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", code)
            if code in _SERVER_FAULTS:
                span.set_status(Status(StatusCode.ERROR, code))
            span.end()
        (self._series.get(code) or self._add_series(code)).record(milliseconds, span)
        log.debug("call", method=self.name, code=code, milliseconds=round(milliseconds, 1))

    def _add_series(self, code: str) -> DurationSeries:
        series = self._series[code] = _durations.series({**self._attributes, "rpc.grpc.status_code": code})
        return series


def _caller(context: Any) -> Any:
    """Returns the trace context that the caller has sent; None, which begins a new trace, without a valid one."""
    parents, states = [], []
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            parents.append(str(value))
        elif key == "tracestate":
            states.append(str(value))
    return caller_context(parents, states) if parents else None
