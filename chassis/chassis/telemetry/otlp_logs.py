"""Log records over OTLP, beside traces and metrics; kept apart because the SDK still calls this part private.

Invariant: as in chassis.telemetry.otlp, the exporter is imported and made at the first batch, off the start path.
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
_OWN_FIELDS = {"event", "level", "timestamp", "service", "trace_id", "span_id"}


def start_logs(resource: Resource, endpoint: str) -> Callable[[], object]:
    """Send every log record of this process from now on; returns what ends it."""
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(_Logs(endpoint)))
    logs.also_send(partial(_emit, provider.get_logger("waypost")))
    return provider.shutdown


def _emit(logger: Logger, record: Mapping[str, Any]) -> None:
    """Send one structlog record; the trace it belongs to is the current one."""
    level = str(record.get("level", "info"))
    logger.emit(
        body=str(record.get("event", "")),
        severity_text=level.upper(),
        severity_number=_SEVERITY.get(level, SeverityNumber.INFO),
        attributes={key: _plain(value) for key, value in record.items() if key not in _OWN_FIELDS},
    )


def _plain(value: object) -> str | bool | int | float:
    return value if isinstance(value, (str, bool, int, float)) else str(value)


class _Logs(LogRecordExporter):
    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> LogRecordExporter:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # noqa: PLC0415 - slow, see module

        return OTLPLogExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return self._exporter.export(batch)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
