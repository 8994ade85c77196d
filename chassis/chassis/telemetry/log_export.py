"""Exports log records to an OTLP receiver, with the ids of their trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext

from chassis.telemetry import logs, otlp
from chassis.telemetry.metrics import SCOPE

_SEVERITY = {
    "debug": logs_pb2.SEVERITY_NUMBER_DEBUG,
    "info": logs_pb2.SEVERITY_NUMBER_INFO,
    "warning": logs_pb2.SEVERITY_NUMBER_WARN,
    "error": logs_pb2.SEVERITY_NUMBER_ERROR,
    "critical": logs_pb2.SEVERITY_NUMBER_FATAL,
}
_Stub: Any = LogsServiceStub
_FIXED = (str, bool, int, float)
_NOT_ATTRIBUTES = {"event", "level", "timestamp", "service", "trace_id", "span_id"}


class LogEntry(NamedTuple):
    """A structlog record with its time in nanoseconds and the span in which it was written."""

    record: Mapping[str, Any]
    time: int
    context: SpanContext


def start_logs(
    resource: Resource, endpoint: str, export_seconds: float, longest_attribute: int
) -> Callable[[], object]:
    """Exports every later log record of this process; returns the shutdown function."""
    stub = _Stub(otlp.channel(endpoint))

    def send(entries: list[LogEntry]) -> None:
        stub.Export(message(resource, entries, longest_attribute), timeout=export_seconds, wait_for_ready=True)

    sender = otlp.BatchSender("logs", send)
    logs.export_with(lambda record: sender.add(entry(record)))
    return sender.close


def entry(record: Mapping[str, Any]) -> LogEntry:
    """Returns a record of the current moment and span; a value that may change later is kept as its text of now."""
    fixed = {key: value if isinstance(value, _FIXED) else str(value) for key, value in record.items()}
    return LogEntry(fixed, time.time_ns(), trace.get_current_span().get_span_context())


def message(resource: Resource, entries: Sequence[LogEntry], longest_attribute: int) -> ExportLogsServiceRequest:
    """Returns the message with all records; texts are cut at `longest_attribute` characters."""
    # Each message is made where it stays: one that is put into another is copied with all that it holds.
    request = ExportLogsServiceRequest()
    attributes = otlp.attributes(resource.attributes)
    of_resource = request.resource_logs.add(resource=ResourceMessage(attributes=attributes))
    scope = of_resource.scope_logs.add(scope=InstrumentationScope(name=SCOPE))
    for each in entries:
        _add(scope, each, longest_attribute)
    return request


def _add(scope: logs_pb2.ScopeLogs, entry: LogEntry, longest_attribute: int) -> None:
    level, context = str(entry.record.get("level", "info")), entry.context
    values = {key: value for key, value in entry.record.items() if key not in _NOT_ATTRIBUTES}
    scope.log_records.add(
        observed_time_unix_nano=entry.time,
        severity_number=_SEVERITY.get(level, logs_pb2.SEVERITY_NUMBER_INFO),
        severity_text=level.upper(),
        body=otlp.any_value(str(entry.record.get("event", ""))),
        attributes=otlp.attributes(values, longest_attribute),
        trace_id=context.trace_id.to_bytes(16, "big") if context.trace_id else b"",
        span_id=context.span_id.to_bytes(8, "big") if context.span_id else b"",
        flags=context.trace_flags,
    )
