"""Writes log records as JSON objects to stdout, one on each line, with the ids of the current trace.

Invariant: structlog and the standard library's loggers use the same output and format. A log call never raises: if the
disk is full, Nomad closes the pipe behind stdout; the line is then lost and counted, and the request continues.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO, cast

import structlog
from opentelemetry import trace

from chassis.telemetry.metrics import meter

Record = MutableMapping[str, Any]

_lines_lost = meter().create_counter("log.lines_lost", description="log lines that stdout did not take")
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_LIBRARY_LEVELS = {"httpx": 30, "httpcore": 30, "asyncio": 30, "urllib3": 30, "psycopg.pool": 40, "psycopg": 40}
# It warns of each malformed tracestate, with its text, which a caller decides.
_LIBRARY_LEVELS["opentelemetry.trace"] = 40


class _State:
    service = ""
    level = 20
    export: Callable[[Record], None] | None = None


def to_stdout(service: str) -> None:
    """Writes all logs of this process, from structlog and the standard library, as JSON lines to stdout."""
    _State.service = service
    structlog.configure(
        processors=[
            _drop_below_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _add_service_and_trace,
            _export,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Stdout())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.INFO, force=True)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def export_with(export: Callable[[Record], None] | None) -> None:
    """Passes every later log record to `export` as well; None stops this."""
    _State.export = export


def set_level(level: str) -> None:
    """Drops later records below `level`, a name such as "INFO"."""
    _State.level = _LEVELS[level]


class Stdout:
    """Writes lines to stdout; counts a line that cannot be written in the metric `log.lines_lost`."""

    def write(self, line: str) -> None:
        """Writes a line and flushes it."""
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except OSError:
            _lines_lost.add(1)

    def flush(self) -> None:
        """Does nothing, because `write` flushes."""


def _drop_below_level(_logger: object, method: str, record: Record) -> Record:
    if _LEVELS.get(method.upper(), 40) < _State.level:
        raise structlog.DropEvent
    return record


def _add_service_and_trace(_logger: object, _method: str, record: Record) -> Record:
    record["service"] = _State.service
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record["trace_id"] = f"{context.trace_id:032x}"
        record["span_id"] = f"{context.span_id:016x}"
    return record


def _export(_logger: object, _method: str, record: Record) -> Record:
    # An exporter that logs its own failure must not export that log.
    if _State.export is not None and not str(record.get("logger", "")).startswith("opentelemetry"):
        _State.export(record)
    return record


def _to_json(record: Record, **_kwargs: Any) -> str:
    return json.dumps(record, default=str, ensure_ascii=False)


class _ToStructlog(logging.Handler):
    """Passes records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging` for each record."""
        logger = structlog.get_logger()
        level = record.levelname.lower() if record.levelname in _LEVELS else "info"
        getattr(logger, level)(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
