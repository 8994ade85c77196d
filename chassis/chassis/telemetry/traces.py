"""Spans of this process and the W3C trace context that joins them across processes.

Invariant: whether a trace is recorded is decided once, where it begins. Below a trace that is not recorded no span is
made; its spans are the one of its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chassis.telemetry.sampling import trace_rate

Attributes = Mapping[str, str | int]
_tracer = trace.get_tracer("waypost")
_w3c = TraceContextTextMapPropagator()
_ids = RandomIdGenerator()
_ROOT = Context()


def tracer() -> trace.Tracer:
    """Returns the tracer of this process; it records nothing before `chassis.telemetry.export.start`."""
    return _tracer


def start_span(
    name: str,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
) -> Span:
    """Starts a span below that of `parent`, by default of the current context; outside of a trace it begins one.

    Below a trace that is not recorded it returns the parent's own span, which ignores every change.
    """
    above = trace.get_current_span(parent)
    context = above.get_span_context()
    if context.is_valid:
        recorded = context.trace_flags & TraceFlags.SAMPLED
        return _tracer.start_span(name, parent, kind, attributes) if recorded else above
    if trace_rate.admits():
        return _tracer.start_span(name, _ROOT, kind, attributes)
    return unrecorded_span()


def start_entry_span(
    name: str,
    caller: Context | None,
    *,
    kind: SpanKind,
    attributes: Callable[[], Attributes] = dict,
    recorded_before: bool = False,
) -> Span:
    """Starts the span of a request from outside of the system, which may name the trace but not decide about it.

    `recorded_before` says that the edge records the trace, so this process does as well. `attributes` is called only if
    the trace is recorded.
    """
    if not trace_rate.admits(recorded_before=recorded_before):
        return unrecorded_span(caller)
    if caller is None:
        return _tracer.start_span(name, _ROOT, kind, attributes())
    return _tracer.start_span(name, _with_flag(caller), kind, attributes())


class UnrecordedSpan(NonRecordingSpan):
    """The one span of a trace that is not recorded. Its `traceparent` is sent with the response and with each call."""

    def __init__(self, context: SpanContext) -> None:
        super().__init__(context)
        self.traceparent = _traceparent(context)


def unrecorded_span(caller: Context | None = None) -> Span:
    """Returns a span that is not recorded, with an id of its own, in the trace of `caller` or in a new one."""
    above = None if caller is None else trace.get_current_span(caller).get_span_context()
    if above is None or not above.is_valid:
        ids, flags, state = _ids.generate_trace_id(), TraceFlags.RANDOM_TRACE_ID, None
    else:
        ids, flags, state = above.trace_id, above.trace_flags & TraceFlags.RANDOM_TRACE_ID, above.trace_state
    return UnrecordedSpan(SpanContext(ids, _ids.generate_span_id(), False, TraceFlags(flags), state))


def _with_flag(caller: Context) -> Context:
    """Returns the context of a caller as if its trace were recorded."""
    above = trace.get_current_span(caller).get_span_context()
    flags = TraceFlags(above.trace_flags & TraceFlags.RANDOM_TRACE_ID | TraceFlags.SAMPLED)
    context = SpanContext(above.trace_id, above.span_id, above.is_remote, flags, above.trace_state)
    return trace.set_span_in_context(NonRecordingSpan(context), _ROOT)


def traceparent(span: Span) -> str:
    """Returns the W3C traceparent of a span, "" if its context is not valid."""
    return span.traceparent if isinstance(span, UnrecordedSpan) else _traceparent(span.get_span_context())


def _traceparent(context: SpanContext) -> str:
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


def caller_context(parents: Sequence[str], states: Sequence[str]) -> Context | None:
    """Returns the OpenTelemetry context of a caller, given its traceparent and tracestate headers.

    None, which begins a new trace, without exactly one valid traceparent. An invalid tracestate is left out.
    """
    return remote_context(parents[0], states) if len(parents) == 1 else None


def remote_context(header: str, states: Sequence[str] = ()) -> Context | None:
    """Parses a traceparent header into an OpenTelemetry context; None if it is empty or malformed."""
    if not header:
        return None
    carrier: dict[str, str | list[str]] = {"traceparent": header}
    if states:
        carrier["tracestate"] = list(states)
    return _w3c.extract(carrier) or None


@contextmanager
def continued(header: str, name: str, attributes: Attributes | None = None) -> Iterator[Span]:
    """Runs the block in a consumer span that continues the trace of a traceparent; "" starts a new trace."""
    span = start_span(name, parent=remote_context(header) or _ROOT, kind=SpanKind.CONSUMER, attributes=attributes)
    with trace.use_span(span, end_on_exit=True):
        yield span
