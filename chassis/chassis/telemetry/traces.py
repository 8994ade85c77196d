"""Spans of this process and the W3C trace context that joins them across processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_w3c = TraceContextTextMapPropagator()


def tracer() -> trace.Tracer:
    """Returns the tracer of this process; it records nothing before `chassis.telemetry.export.start`."""
    return trace.get_tracer("waypost")


def traceparent(span: Span) -> str:
    """Returns the W3C traceparent of a span, "" if its context is not valid."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_traceparent() -> str:
    """Returns the W3C traceparent of the current span, "" outside of any trace."""
    return traceparent(trace.get_current_span())


def remote_context(header: str) -> Any:
    """Parses a traceparent header into an OpenTelemetry context; None if it is empty or malformed."""
    return _w3c.extract({"traceparent": header}) or None


@contextmanager
def continued(header: str, name: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
    """Runs the block in a consumer span that continues the trace of a traceparent; "" starts a new trace."""
    with tracer().start_as_current_span(
        name, context=remote_context(header), kind=SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield span
