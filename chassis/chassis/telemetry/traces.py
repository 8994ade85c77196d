"""Spans of this process and the W3C trace context that joins them across processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SAMPLER = ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON)
"""Records every span outside of a probe, also where the flags of the caller's traceparent say that it records none."""

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


def trace_headers(span: Span) -> tuple[tuple[str, str], ...]:
    """Returns the W3C headers of a span for the next process: traceparent, and tracestate if the caller sent one."""
    header = traceparent(span)
    if not header:
        return ()
    state = span.get_span_context().trace_state
    return (("traceparent", header), ("tracestate", state.to_header())) if state else (("traceparent", header),)


def caller_context(parents: Sequence[str], states: Sequence[str]) -> Any:
    """Returns the OpenTelemetry context of a caller, given its traceparent and tracestate headers.

    None, which begins a new trace, without exactly one valid traceparent. An invalid tracestate is left out.
    """
    return remote_context(parents[0], states) if len(parents) == 1 else None


def remote_context(header: str, states: Sequence[str] = ()) -> Any:
    """Parses a traceparent header into an OpenTelemetry context; None if it is empty or malformed."""
    if not header:
        return None
    carrier: dict[str, str | list[str]] = {"traceparent": header}
    if states:
        carrier["tracestate"] = list(states)
    return _w3c.extract(carrier) or None


@contextmanager
def continued(header: str, name: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
    """Runs the block in a consumer span that continues the trace of a traceparent; "" starts a new trace."""
    with tracer().start_as_current_span(
        name, context=remote_context(header), kind=SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield span
