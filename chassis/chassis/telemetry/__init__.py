"""Traces, metrics and logs over OTLP, and the same logs as JSON on stdout, each line with its trace.

Invariant: nothing here waits for a collector; an absent one costs dropped telemetry and at most `stop(timeout)`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chassis.telemetry import logs, otlp, otlp_logs

if TYPE_CHECKING:
    from collections.abc import Callable

_SCOPE = "waypost"
METRIC_INTERVAL_SECONDS = 30.0
_stops: list[Callable[[], object]] = []
_w3c = TraceContextTextMapPropagator()

log_to_stdout = logs.to_stdout
set_level = logs.set_level


def start(name: str, version: str, instance: str, endpoint: str) -> None:
    """Send traces, metrics and logs of this process to the OTLP gRPC receiver at `endpoint` (a URL)."""
    # Resource.create would also load every detector plugin: 40 ms of start time for nothing.
    resource = Resource({"service.name": name, "service.version": version, "service.instance.id": instance})
    _stops[:] = [
        otlp.start_traces(resource, endpoint),
        otlp.start_metrics(resource, endpoint, METRIC_INTERVAL_SECONDS),
        otlp_logs.start_logs(resource, endpoint),
    ]


def stop(timeout: float) -> None:
    """Flush what is waiting, for at most `timeout` seconds in all."""
    flushing = [threading.Thread(target=_quietly, args=(end,), daemon=True) for end in _stops]
    ends_at = time.monotonic() + timeout
    for thread in flushing:
        thread.start()
    for thread in flushing:
        thread.join(max(0.0, ends_at - time.monotonic()))


def tracer() -> trace.Tracer:
    """The tracer of this process; does nothing until `start`."""
    return trace.get_tracer(_SCOPE)


def meter() -> metrics.Meter:
    """The meter of this process; does nothing until `start`."""
    return metrics.get_meter(_SCOPE)


def traceparent(span: Span) -> str:
    """The W3C traceparent of a span, "" when it has no valid context."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_traceparent() -> str:
    """The W3C traceparent of the current span, "" outside of any trace."""
    return traceparent(trace.get_current_span())


def remote_context(header: str) -> Any:
    """The OpenTelemetry context a traceparent header describes; None when it is empty or malformed."""
    return _w3c.extract({"traceparent": header}) or None


@contextmanager
def continued(header: str, name: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
    """A consumer span named `name` that goes on with the trace of a traceparent; "" begins a new trace."""
    with tracer().start_as_current_span(
        name, context=remote_context(header), kind=SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield span


def _quietly(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception:
        logging.getLogger(__name__).debug("telemetry did not flush", exc_info=True)
