"""Recorded spans: the tracing API of OpenTelemetry, implemented for spans that one task uses.

A span of the SDK copies and checks each attribute and takes a lock for it, at several times the CPU. Ours keep what
they are given: texts and numbers of this code base. `span_export` limits their length when it makes the message.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AnyValue, Attributes

_MOST_EVENTS = 128  # the default of the OpenTelemetry specification
_UNSET = Status()
_ids = RandomIdGenerator()
_RECORDED = TraceFlags(TraceFlags.SAMPLED)
_RECORDED_RANDOM = TraceFlags(TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID)


class RecordedSpan(Span):
    """A span that passes itself to `on_end` when it ends, and ignores every change after that.

    Of its events the first 128 are kept. Times are in nanoseconds since 1970.
    """

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        on_end: Callable[[RecordedSpan], object],
        *,
        attributes: Attributes = None,
        links: Sequence[Link] = (),
        start_time: int | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.context = context
        self.parent = parent
        self.attributes: dict[str, AnyValue] = dict(attributes) if attributes else {}
        self.links = links
        self.events: list[Event] = []
        self.dropped_events = 0
        self.status = _UNSET
        self.start_time = time.time_ns() if start_time is None else start_time
        self.end_time: int | None = None
        self._on_end = on_end

    def get_span_context(self) -> SpanContext:
        """See Span."""
        return self.context

    def is_recording(self) -> bool:
        """See Span."""
        return self.end_time is None

    def update_name(self, name: str) -> None:
        """See Span."""
        if self.end_time is None:
            self.name = name

    def set_attribute(self, key: str, value: AnyValue) -> None:
        """See Span."""
        if self.end_time is None:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        """See Span."""
        if self.end_time is None:
            self.attributes.update(attributes)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """See Span. OK is final, and a status is never unset."""
        wanted = Status(status, description) if isinstance(status, StatusCode) else status
        is_final = self.status.status_code is StatusCode.OK
        if self.end_time is None and not is_final and wanted.status_code is not StatusCode.UNSET:
            self.status = wanted

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """See Span."""
        if self.end_time is not None:
            return
        if len(self.events) >= _MOST_EVENTS:
            self.dropped_events += 1
        else:
            self.events.append(Event(name, dict(attributes or {}), timestamp))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Adds the exception as an event, named as the semantic conventions of OpenTelemetry say."""
        kind = type(exception)
        described = {
            "exception.type": kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**described, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """See Span."""
        if self.end_time is None:
            self.end_time = time.time_ns() if end_time is None else end_time
            self._on_end(self)


class RecordingTracer(trace.Tracer):
    """Records every span, except below one that is not recorded: `chassis.telemetry.traces` has decided before."""

    def __init__(self, on_end: Callable[[RecordedSpan], object]) -> None:
        self._on_end = on_end

    def start_span(  # noqa: PLR0917 - as Tracer declares it
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: ARG002 - `use_span` records it
        set_status_on_exception: bool = True,  # noqa: ARG002
    ) -> Span:
        """See Tracer."""
        above = trace.get_current_span(context).get_span_context()
        if not above.is_valid:
            own = SpanContext(_ids.generate_trace_id(), _ids.generate_span_id(), False, _RECORDED_RANDOM)
            parent = None
        elif above.trace_flags & TraceFlags.SAMPLED:
            flags = _RECORDED_RANDOM if above.trace_flags & TraceFlags.RANDOM_TRACE_ID else _RECORDED
            own = SpanContext(above.trace_id, _ids.generate_span_id(), False, flags, above.trace_state)
            parent = above
        else:
            return NonRecordingSpan(above)
        return RecordedSpan(
            name, kind, own, parent, self._on_end, attributes=attributes, links=links or (), start_time=start_time
        )

    def start_as_current_span(self, *args: Any, end_on_exit: bool = True, **options: Any) -> Any:
        """See Tracer."""
        return trace.use_span(self.start_span(*args, **options), end_on_exit=end_on_exit)


class SpanProvider(trace.TracerProvider):
    """Provides one tracer for all, whose spans are passed to `on_end`."""

    def __init__(self, on_end: Callable[[RecordedSpan], object]) -> None:
        self._tracer = RecordingTracer(on_end)

    def get_tracer(self, *_args: Any, **_options: Any) -> trace.Tracer:
        """See TracerProvider."""
        return self._tracer
