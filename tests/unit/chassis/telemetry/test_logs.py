"""The form of a log line, its export, and a stdout that takes no lines."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions

from chassis.telemetry import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    before = structlog.get_config()
    root = logging.getLogger()
    handlers = root.handlers[:]
    logs.to_stdout("gateway")
    yield lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    structlog.configure(**before)
    root.handlers[:] = handlers
    logs.set_level("INFO")
    logs.export_with(None)


def test_a_log_line_is_json_with_its_trace(lines: Lines) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, is_remote=False))
    with trace.use_span(span):
        structlog.get_logger().info("placed", order="o1")
    (line,) = lines()
    assert (line["event"], line["order"], line["level"], line["service"]) == ("placed", "o1", "info", "gateway")
    assert (line["trace_id"], line["span_id"]) == ("ab".zfill(32), "cd".zfill(16))
    assert line["timestamp"].endswith("Z")


def test_a_log_line_of_a_library_has_the_same_form(lines: Lines) -> None:
    try:
        raise ValueError("deep")
    except ValueError:
        logging.getLogger("sanic").exception("it %s", "broke")
    (line,) = lines()
    assert (line["event"], line["logger"], line["level"]) == ("it broke", "sanic", "error")
    assert "ValueError: deep" in line["exception"]


def test_the_context_of_a_logger_is_in_its_lines(lines: Lines) -> None:
    log = structlog.get_logger().bind(order="o1", step=1)
    log.info("placed", step=2)
    log.info("settled")
    assert [(line["event"], line["order"], line["step"]) for line in lines()] == [
        ("placed", "o1", 2),
        ("settled", "o1", 1),
    ]


def test_a_new_level_applies_to_the_next_line(lines: Lines) -> None:
    log = structlog.get_logger()
    log.debug("one")
    logs.set_level("DEBUG")
    log.debug("two")
    logs.set_level("ERROR")
    log.warning("three")
    assert [line["event"] for line in lines()] == ["two"]


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_nothing_is_formatted_below_the_level(lines: Lines, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    render = logs._render
    log = structlog.get_logger()
    log.info("a logger that is in use already")
    monkeypatch.setattr(logs, "_render", lambda name, record: rendered.append(name) or render(name, record))
    logs.set_level(level)
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(log, name)("event")
    names = ["debug", "info", "warning", "error", "critical"]
    assert rendered == names[names.index(level.lower()) :]
    assert [line["level"] for line in lines()] == ["info", *rendered]


class Strange:
    def __str__(self) -> str:
        return "strange"


@dataclass
class Point:
    x: int


VALUES: list[tuple[Any, Any]] = [
    ("ünï ☕", "ünï ☕"),
    ("half \ud83d character", "half \ud83d character"),
    (2**64, 2**64),
    (float("inf"), None),
    (Strange(), "strange"),
    (Point(1), "Point(x=1)"),
    (UUID(int=1), str(UUID(int=1))),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    ({1: "a"}, {"1": "a"}),
    ((1, 2), [1, 2]),
    (b"bytes", "b'bytes'"),
    ("two\nlines", "two\nlines"),
]


@pytest.mark.parametrize(("value", "written"), VALUES)
def test_every_value_is_written(lines: Lines, value: object, written: object) -> None:
    structlog.get_logger().info("event", value=value)
    (line,) = lines()
    assert line["value"] == written


# --- export


@pytest.fixture
def exported(lines: Lines) -> list[object]:
    events: list[object] = []
    logs.export_with(lambda record: events.append(record["event"]))
    return events


def test_records_are_exported_except_those_of_opentelemetry(exported: list[object]) -> None:
    structlog.get_logger().info("one")
    logging.getLogger("opentelemetry.exporter").warning("collector is unavailable")
    assert exported == ["one"]


@pytest.mark.parametrize("recorded", [False, True])
def test_below_a_warning_a_trace_that_is_not_recorded_exports_nothing(
    exported: list[object], lines: Lines, recorded: bool
) -> None:
    logs.set_level("DEBUG")
    names = ("debug", "info", "warning", "error", "critical")
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if recorded else trace.TraceFlags.DEFAULT)
    span = trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, is_remote=False, trace_flags=flags))
    with trace.use_span(span):
        for name in names:
            getattr(structlog.get_logger(), name)(name)
        try:
            raise ValueError("deep")
        except ValueError:
            structlog.get_logger().exception("exception")
    assert exported == [*(names if recorded else names[2:]), "exception"]
    assert {line["trace_id"] for line in lines()} == {"ab".zfill(32)}


def test_a_record_is_exported_with_the_fields_of_its_line(lines: Lines) -> None:
    records: list[dict[str, Any]] = []
    logs.export_with(lambda record: records.append(dict(record)))
    try:
        raise ValueError("deep")
    except ValueError:
        structlog.get_logger().exception("it broke", order="o1")
    assert records == lines()
    assert "ValueError: deep" in records[0]["exception"]


# --- a stdout that takes no lines


LOGGING = """
import sys
import structlog
from chassis.telemetry import logs

logs.to_stdout("gateway")
for number in range(3):
    structlog.get_logger().info(f"{number} " + "x" * 10_000)
print("still running", file=sys.stderr)
"""


def test_a_closed_stdout_fails_no_log_call() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", LOGGING], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.stderr.startswith("still running")


def test_a_full_disk_fails_no_log_call() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", LOGGING]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.stderr.startswith("still running")


class Closed(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, _data: object) -> int:
        raise BrokenPipeError


def test_a_line_that_cannot_be_written_is_counted(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = logs._State.lines_lost
    log = structlog.get_logger()
    log.info("written")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Closed(), 1)))
        log.info("one")
        log.error("two")
    (observed,) = logs._lines_lost(CallbackOptions())
    assert observed.value == lost + 2
    assert [line["event"] for line in lines()] == ["written"]


def test_lines_written_to_stdout_are_complete() -> None:
    ran = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, check=True)
    assert [json.loads(line)["event"][0] for line in ran.stdout.splitlines()] == ["0", "1", "2"]
