"""Exports log records to an OTLP receiver, in batches and in a thread of the SDK.

OpenTelemetry still marks this part of its API and SDK as private (`_logs`); no other module may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry._logs import Logger, SeverityNumber  # fragile: opentelemetry-logs
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # fragile: opentelemetry-logs
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits  # fragile: opentelemetry-logs
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # fragile: opentelemetry-logs
from opentelemetry.sdk.resources import Resource

from chassis.telemetry import logs

_SEVERITY = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_NOT_ATTRIBUTES = {"event", "level", "timestamp", "service", "trace_id", "span_id"}


def start_logs(
    resource: Resource, endpoint: str, export_seconds: float, longest_attribute: int
) -> Callable[[], object]:
    """Exports every later log record of this process; returns the shutdown function."""
    exporter = OTLPLogExporter(endpoint, insecure=True, timeout=export_seconds)
    limits = LogRecordLimits(max_attribute_length=longest_attribute)
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False, log_record_limits=limits)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logs.export_with(partial(_emit, provider.get_logger("waypost")))
    return provider.shutdown


def _emit(logger: Logger, record: Mapping[str, Any]) -> None:
    """Converts one structlog record; the SDK adds the ids of the current trace."""
    level = str(record.get("level", "info"))
    logger.emit(
        body=str(record.get("event", "")),
        severity_text=level.upper(),
        severity_number=_SEVERITY.get(level, SeverityNumber.INFO),
        attributes={key: _attribute(value) for key, value in record.items() if key not in _NOT_ATTRIBUTES},
    )


def _attribute(value: object) -> str | bool | int | float:
    return value if isinstance(value, (str, bool, int, float)) else str(value)
