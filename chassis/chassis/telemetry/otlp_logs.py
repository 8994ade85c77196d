"""Exports log records over OTLP, in batches and in a thread of the SDK.

OpenTelemetry still marks this part of its SDK as private (`_logs`); no other module may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from chassis.telemetry import logs

_EXPORT_SECONDS = 3.0
_SEVERITY = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_NOT_ATTRIBUTES = {"event", "level", "timestamp", "service", "trace_id", "span_id"}


def start_logs(resource: Resource, endpoint: str) -> Callable[[], object]:
    """Exports every later log record of this process; returns the shutdown function."""
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(LazyLogExporter(endpoint)))
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


class LazyLogExporter(LogRecordExporter):
    """Makes the OTLP exporter at the first batch."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> LogRecordExporter:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # noqa: PLC0415 - 150 ms

        return OTLPLogExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Sends a batch; called by the SDK."""
        return self._exporter.export(batch)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits for pending exports; called by the SDK."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Closes the channel to the collector; called by the SDK."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
