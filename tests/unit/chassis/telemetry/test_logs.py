"""The form of a log line, its export, and a stdout that takes no lines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from chassis.telemetry import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    before, level = structlog.get_config(), logs._State.level
    root = logging.getLogger()
    handlers = root.handlers[:]
    logs.to_stdout("gateway")
    yield lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    structlog.configure(**before)
    root.handlers[:] = handlers
    logs._State.level = level


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


def test_a_new_level_applies_to_the_next_line(lines: Lines) -> None:
    log = structlog.get_logger()
    log.debug("one")
    logs.set_level("DEBUG")
    log.debug("two")
    logs.set_level("ERROR")
    log.warning("three")
    assert [line["event"] for line in lines()] == ["two"]


def test_records_are_exported_except_those_of_opentelemetry(lines: Lines) -> None:
    exported: list[object] = []
    logs.export_with(lambda record: exported.append(record["event"]))
    structlog.get_logger().info("one")
    logging.getLogger("opentelemetry.exporter").warning("collector is unavailable")
    logs.export_with(None)
    assert exported == ["one"]


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


def test_lines_written_to_stdout_are_complete() -> None:
    ran = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, check=True)
    assert [json.loads(line)["event"][0] for line in ran.stdout.splitlines()] == ["0", "1", "2"]
