"""Writes log records as JSON objects to stdout, one on each line, with the ids of the current trace.

Invariant: structlog and the standard library's loggers use the same output and format. A log call never raises: if the
disk is full, Nomad closes the pipe behind stdout; the line is then lost and counted, and the request continues.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanContext

from chassis.telemetry.metrics import meter

Record = MutableMapping[str, Any]

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_LIBRARY_LEVELS = {"httpx": 30, "httpcore": 30, "asyncio": 30, "urllib3": 30, "psycopg.pool": 40, "psycopg": 40}
# It warns of each malformed tracestate, with its text, which a caller decides.
_LIBRARY_LEVELS["opentelemetry.trace"] = 40
_ALWAYS_EXPORTED = frozenset({"warning", "error", "critical"})
# Such values are written as their text, as everything that JSON does not have.
_JSON = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


class _State:
    service = ""
    export: Callable[[Record], None] | None = None
    slow_seconds = 1.0
    lines_lost = 0


def to_stdout(service: str) -> None:
    """Writes all logs of this process, from structlog and the standard library, as JSON lines to stdout."""
    _State.service = service
    structlog.configure(
        wrapper_class=_Logger,
        logger_factory=lambda *_name: _stdout,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.INFO, force=True)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def export_with(export: Callable[[Record], None] | None) -> None:
    """Passes later log records to `export` as well, except those below WARNING of a trace that is not recorded.

    None stops this.
    """
    _State.export = export


def set_level(level: str) -> None:
    """Drops later records below `level`, a name such as "INFO", before anything of them is formatted."""
    _Logger.__bases__ = (structlog.make_filtering_bound_logger(_LEVELS[level]),)


def set_slow(seconds: float) -> None:
    """Sets the time above which `is_slow` is true."""
    _State.slow_seconds = seconds


def is_slow(seconds: float) -> bool:
    """True for a request that took so long that it is logged as a warning."""
    return seconds > _State.slow_seconds


class Stdout:
    """Writes lines to stdout; counts a line that cannot be written in the metric `log.lines_lost`."""

    def write(self, line: bytes) -> None:
        """Writes a line, which ends with a newline, and flushes it."""
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except OSError:
            _State.lines_lost += 1

    debug = info = warning = error = critical = write


def _write(logger: Any, level: str, event: str | None = None, /, **record: Any) -> None:
    """Renders and writes a record; structlog's own method would copy it before each step."""
    record["event"] = event
    getattr(_stdout, level)(_render(level, structlog.get_context(logger) | record))


_stdout = Stdout()
# The class of every logger. A method of its base does nothing if its level is off. structlog documents the name of the
# method that they call, for classes like this one.
_Logger = type("LiveLogger", (structlog.make_filtering_bound_logger(logging.INFO),), {"_proxy_to_logger": _write})


def _render(level: str, record: Record) -> bytes:
    """Completes a record, exports it and returns its line."""
    record["level"] = level
    record["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if "exc_info" in record:
        structlog.processors.format_exc_info(None, level, record)
    record["service"] = _State.service
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record["trace_id"] = f"{context.trace_id:032x}"
        record["span_id"] = f"{context.span_id:016x}"
    if _State.export is not None and _is_exported(level, record, context):
        _State.export(record)
    return _to_json(record)


def _is_exported(level: str, record: Record, context: SpanContext) -> bool:
    # An exporter that logs its own failure must not export that log.
    if str(record.get("logger", "")).startswith("opentelemetry"):
        return False
    return level in _ALWAYS_EXPORTED or not context.is_valid or context.trace_flags.sampled


def _to_json(record: Record) -> bytes:
    try:
        return orjson.dumps(record, str, _JSON)
    except TypeError:  # integers above 64 bits, keys that are no strings, half characters
        return json.dumps(record, default=str).encode() + b"\n"


def _lines_lost(_options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(_State.lines_lost)]


meter().create_observable_counter("log.lines_lost", [_lines_lost], description="log lines that stdout did not take")


class _ToStructlog(logging.Handler):
    """Passes records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging` for each record."""
        logger = structlog.get_logger()
        level = record.levelname.lower() if record.levelname in _LEVELS else "info"
        getattr(logger, level)(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
