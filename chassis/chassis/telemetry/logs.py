"""One log line is one JSON object on stdout with the ids of its trace; the same record goes out over OTLP.

Invariant: structlog and the standard library's loggers end in the same place, in the same form.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from opentelemetry import trace

Record = MutableMapping[str, Any]

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_add_time = structlog.processors.TimeStamper(fmt="iso", utc=True)
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
            _add_time,
            structlog.processors.format_exc_info,
            _add_origin,
            _send,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=_log_file()),
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


def _log_file() -> TextIO | None:
    """Stdout if it is a file; None for a pipe, a terminal, or what a test has put there."""
    try:
        number = sys.stdout.fileno()
    except OSError:
        return None
    return cast(TextIO, LogFile(number)) if stat.S_ISREG(os.fstat(number).st_mode) else None


class LogFile:
    """A log that the process itself appends to, as Nomad has it where the `logs` of a task are disabled.

    Beyond `longest` bytes it becomes `old.NAME`, and one of the same name takes its place, for stderr too where that is
    the same. A disk that takes no line, or half of one, fails no caller of the log: lost lines are counted, and the
    next that goes through is preceded by their number.
    """

    def __init__(self, number: int, longest: int = 10_000_000) -> None:
        self._number = number
        self._path = Path(f"/proc/self/fd/{number}").readlink()
        self._longest = longest
        self._lost = 0
        self._torn = False

    def write(self, line: str) -> None:
        """Appends a line, newline included, in one piece."""
        before = ("\n" if self._torn else "") + (_lines_lost(self._lost) if self._lost else "")
        whole = (before + line).encode(errors="backslashreplace")
        try:
            written = os.write(self._number, whole)
        except OSError:
            written = 0
        if written < len(whole):
            self._lost += 1
            self._torn = self._torn or written > 0
            return
        self._lost, self._torn = 0, False
        if os.fstat(self._number).st_size > self._longest:
            with suppress(OSError):  # no room for another: this one goes on, and the next line tries again
                self._begin_anew()

    def flush(self) -> None:
        """Nothing is held back."""

    def _begin_anew(self) -> None:
        old, fresh = (self._path.with_name(f"{prefix}.{self._path.name}") for prefix in ("old", "new"))
        number = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            same = [each for each in (1, 2, self._number) if os.path.sameopenfile(each, self._number)]
            # By links, so that whoever looks for the name finds a log under it at any moment.
            old.unlink(missing_ok=True)
            old.hardlink_to(self._path)
            fresh.replace(self._path)
            for each in same:
                os.dup2(number, each)
        finally:
            os.close(number)


def _lines_lost(number: int) -> str:
    record: Record = {"lines": number, "event": "log lines lost", "level": "error", "service": _Sink.service}
    return _to_json(_add_time(None, "error", record)) + "\n"


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
