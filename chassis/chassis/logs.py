"""One log line is one JSON object on stdout with the ids of its trace; the same record goes out over OTLP.

Invariant: structlog and the standard library's loggers end in the same place, in the same form.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

Record = MutableMapping[str, Any]

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_NOISY = {"httpx": 30, "httpcore": 30, "asyncio": 30, "urllib3": 30, "psycopg.pool": 40, "psycopg": 40}


class _Sink:
    service = ""
    level = 20
    send: Callable[[Record], None] | None = None


def to_stdout(service: str) -> None:
    """Write every log of this process, structlog's and the standard library's, as JSON lines to stdout."""
    _Sink.service = service
    structlog.configure(
        processors=[
            _drop_below_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _add_origin,
            _send,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.INFO, force=True)
    for name, level in _NOISY.items():
        logging.getLogger(name).setLevel(level)


def also_send(send: Callable[[Record], None] | None) -> None:
    """Hand every log record to `send` too, until called with None."""
    _Sink.send = send


def set_level(level: str) -> None:
    """Drop what is below `level`, a name such as "INFO", from now on."""
    _Sink.level = _LEVELS[level]


def _drop_below_level(_logger: object, method: str, record: Record) -> Record:
    if _LEVELS.get(method.upper(), 40) < _Sink.level:
        raise structlog.DropEvent
    return record


def _add_origin(_logger: object, _method: str, record: Record) -> Record:
    record["service"] = _Sink.service
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record["trace_id"] = f"{context.trace_id:032x}"
        record["span_id"] = f"{context.span_id:016x}"
    return record


def _send(_logger: object, _method: str, record: Record) -> Record:
    # Telemetry's own troubles must not feed the pipe that has them.
    if _Sink.send is not None and not str(record.get("logger", "")).startswith("opentelemetry"):
        _Sink.send(record)
    return record


def _to_json(record: Record, **_kwargs: Any) -> str:
    return json.dumps(record, default=str, ensure_ascii=False)


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write = structlog.get_logger()
        level = record.levelname.lower() if record.levelname in _LEVELS else "info"
        getattr(write, level)(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
