"""Logs: their form, and the file that a process writes them to itself."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from opentelemetry import trace

from chassis.telemetry import logs


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> object:
    before, level = structlog.get_config(), logs._Sink.level
    root = logging.getLogger()
    handlers = root.handlers[:]
    logs.to_stdout("gateway")
    yield lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    structlog.configure(**before)
    root.handlers[:] = handlers
    logs._Sink.level = level


def test_a_log_line_is_json_with_its_trace(lines) -> None:  # type: ignore[no-untyped-def]
    span = trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, is_remote=False))
    with trace.use_span(span):
        structlog.get_logger().info("placed", order="o1")
    (line,) = lines()
    assert (line["event"], line["order"], line["level"], line["service"]) == ("placed", "o1", "info", "gateway")
    assert (line["trace_id"], line["span_id"]) == ("ab".zfill(32), "cd".zfill(16))
    assert line["timestamp"].endswith("Z")


def test_libraries_log_the_same_way(lines) -> None:  # type: ignore[no-untyped-def]
    try:
        raise ValueError("deep")
    except ValueError:
        logging.getLogger("sanic").exception("it %s", "broke")
    (line,) = lines()
    assert (line["event"], line["logger"], line["level"]) == ("it broke", "sanic", "error")
    assert "ValueError: deep" in line["exception"]


def test_the_level_is_live(lines) -> None:  # type: ignore[no-untyped-def]
    log = structlog.get_logger()
    log.debug("one")
    logs.set_level("DEBUG")
    log.debug("two")
    logs.set_level("ERROR")
    log.warning("three")
    assert [line["event"] for line in lines()] == ["two"]


def test_records_are_sent_too_but_not_those_of_telemetry_itself(lines) -> None:  # type: ignore[no-untyped-def]
    sent: list[object] = []
    logs.also_send(lambda record: sent.append(record["event"]))
    structlog.get_logger().info("one")
    logging.getLogger("opentelemetry.exporter").warning("collector is away")
    logs.also_send(None)
    assert sent == ["one"]


SERVICE = """
import sys
import structlog
from chassis.telemetry import logs

logs.to_stdout("gateway")
print("Traceback of a library", file=sys.stderr, flush=True)
for number in range(3):
    structlog.get_logger().info(f"{number} " + "x" * 6_000_000)
print("the last", file=sys.stderr)
"""


def test_a_log_file_that_is_long_becomes_the_old_one_for_both_streams(tmp_path: Path) -> None:
    log = tmp_path / "gateway.stdout.0"
    log.write_text("of the process before\n")
    with log.open("a") as both:
        subprocess.run([sys.executable, "-c", SERVICE], stdout=both, stderr=both, check=True)
    before, trace_back, *old = (tmp_path / "old.gateway.stdout.0").read_text().splitlines()
    assert (before, trace_back) == ("of the process before", "Traceback of a library")
    *new, last = log.read_text().splitlines()
    assert last == "the last"
    assert [[json.loads(line)["event"][0] for line in lines] for lines in (old, new)] == [["0", "1"], ["2"]]


def test_logs_to_anything_else_than_a_file_stay_where_they_go() -> None:
    ran = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, check=True)
    assert [json.loads(line)["event"][0] for line in ran.stdout.splitlines()] == ["0", "1", "2"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "order-service.stdout.0"


@pytest.fixture
def log(path: Path) -> Iterator[logs.LogFile]:
    with path.open("a") as opened:
        yield logs.LogFile(opened.fileno(), longest=10_000)


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def _half(number: int, line: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    """As the last write before a disk is full."""
    return write(number, line[: len(line) // 2])


# What stands in the log of two lines that were lost, by their first letters: of the second, its number of lost lines.
@pytest.mark.parametrize(("failing", "left"), [("full full", []), ("half full", ["t"]), ("half half", ["t", "{"])])
def test_a_full_disk_fails_no_caller_and_its_lines_are_counted(
    log: logs.LogFile, path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, left: list[str]
) -> None:
    log.write("one\n")
    for line, disk in zip(("two\n", "three\n"), failing.split(), strict=True):
        with monkeypatch.context() as full:
            full.setattr(os, "write", {"full": _full, "half": _half}[disk])
            log.write(line)
    log.write("four\n")
    log.write("five\n")
    one, *torn, lost, four, five = path.read_text().splitlines()
    assert (one, four, five) == ("one", "four", "five")
    assert [line[0] for line in torn if line] == left
    told = json.loads(lost)
    assert (told["event"], told["lines"], told["level"]) == ("log lines lost", 2, "error")
    assert set(told) >= {"timestamp", "service"}


@pytest.mark.parametrize(("where", "what"), [(os, "open"), (os, "link"), (os, "replace"), (os.path, "sameopenfile")])
def test_a_log_that_cannot_begin_anew_goes_on(
    log: logs.LogFile, path: Path, monkeypatch: pytest.MonkeyPatch, where: object, what: str
) -> None:
    before = _open_files()
    with monkeypatch.context() as full:
        full.setattr(where, what, _full)
        for _ in range(3):
            log.write("x" * 10_000 + "\n")
            assert path.exists()
    assert _open_files() == before
    log.write("the last of it\n")
    log.write("another\n")
    assert path.read_text() == "another\n"
    assert path.with_name(f"old.{path.name}").read_text().count("\n") == 4


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
