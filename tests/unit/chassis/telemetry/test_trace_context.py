"""Trace context, without a collector."""

from __future__ import annotations

import logging
import time

import pytest
import structlog
from opentelemetry import trace

from chassis.serving import call_telemetry
from chassis.telemetry import export, logs, traces
from chassis.telemetry.spans import SpanProvider

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> trace.Tracer:
    tracer = SpanProvider(lambda _: None).get_tracer("test")
    monkeypatch.setattr(traces, "_tracer", tracer)
    return tracer


MALFORMED = [
    "",
    "junk",
    "\udcff",
    "00-0-0-00",
    HEADER[:-1],
    HEADER.upper(),
    HEADER.replace("0af7", "zzzz"),
    HEADER.replace("0af7", "0x_7"),
    HEADER.replace(HEADER[3:35], "0" * 32),
    HEADER.replace(HEADER[36:52], "0" * 16),
    f"{HEADER}-more",
    f"{HEADER}more",
    f"zz{HEADER[2:]}",
    f"0A{HEADER[2:]}",
    f"ff{HEADER[2:]}",
    f"ff{HEADER[2:]}-more",
    f"01{HEADER[2:]}more",
]


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_traceparent_begins_a_new_trace(tracing: trace.Tracer, header: str) -> None:
    assert traces.remote_context(header) is None
    with traces.continued(header, "work") as span:
        assert f"{span.get_span_context().trace_id:032x}" not in HEADER


@pytest.mark.parametrize(("version", "more"), [("01", ""), ("01", "-more"), ("fe", "-"), ("cc", "-a-b")])
def test_a_traceparent_of_a_later_version_is_read_by_its_first_four_fields(
    tracing: trace.Tracer, version: str, more: str
) -> None:
    with traces.continued(f"{version}{HEADER[2:]}{more}", "work"):
        assert traces.current_traceparent().startswith(HEADER[:36])


def test_a_traceparent_is_continued(tracing: trace.Tracer) -> None:
    with traces.continued(HEADER, "work"):
        version, trace_id, span_id, flags = traces.current_traceparent().split("-")
    assert (version, trace_id, flags) == ("00", HEADER[3:35], "01")
    assert span_id != HEADER[36:52]


@pytest.mark.parametrize(
    ("flags", "recorded"), [("00", False), ("02", False), ("fe", False), ("01", True), ("ff", True)]
)
def test_work_that_continues_a_trace_follows_its_flag(tracing: trace.Tracer, flags: str, recorded: bool) -> None:
    with traces.continued(HEADER[:-2] + flags, "work") as span:
        assert span.is_recording() is recorded
        assert traces.current_traceparent()[3:35] == HEADER[3:35]
        assert int(traces.current_traceparent()[-2:], 16) & 1 == recorded


def test_a_span_below_a_probe_is_not_recorded(tracing: trace.Tracer) -> None:
    """Control: the decision of this process itself holds."""
    probe = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    with trace.use_span(probe):
        assert not tracing.start_span("work").is_recording()
        assert traces.start_span("work") is probe


@pytest.mark.parametrize("parents", [[], [HEADER, HEADER], [HEADER, ""], ["", HEADER], [f"{HEADER},{HEADER}"]])
def test_other_than_one_traceparent_begins_a_new_trace(parents: list[str]) -> None:
    assert traces.caller_context([HEADER], []) is not None
    assert traces.caller_context(parents, ["a=1"]) is None


@pytest.mark.parametrize("parents", [[HEADER, HEADER], [HEADER, f"00-{'1' * 32}-{'2' * 16}-01"], [], ["junk"]])
def test_a_call_with_other_than_one_traceparent_begins_a_new_trace(parents: list[str]) -> None:
    class Context:
        def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
            return [("traceparent", parent) for parent in parents] + [("tracestate", "a=1"), ("x-bin", b"\x00")]

    assert call_telemetry._caller(Context()) is None


def test_the_tracestate_of_the_caller_is_passed_on(tracing: trace.Tracer) -> None:
    context = traces.caller_context([HEADER], ["a=1, b=2", "c=3"])
    span = tracing.start_span("work", context)
    assert dict(traces.trace_headers(span)) == {"traceparent": traces.traceparent(span), "tracestate": "a=1,b=2,c=3"}
    assert dict(traces.trace_headers(tracing.start_span("work"))).keys() == {"traceparent"}
    assert traces.trace_headers(trace.INVALID_SPAN) == ()


@pytest.mark.parametrize("states", [["junk"], ["a=1,a=2"], ["a=" + "1" * 600], ["A=1"], ["a=\udcff"], ["a=\n"]])
def test_an_invalid_tracestate_is_left_out_without_a_log_line(
    tracing: trace.Tracer, states: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    try:
        logs.to_stdout("test")
        logging.getLogger("opentelemetry").warning("control")
        span = tracing.start_span("work", traces.caller_context([HEADER], states))
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers
    assert dict(traces.trace_headers(span)).keys() == {"traceparent"}
    assert traces.trace_headers(span)[0][1].startswith(HEADER[:36])
    (line,) = capsys.readouterr().out.splitlines()
    assert "control" in line


def test_outside_of_a_trace_there_is_no_traceparent() -> None:
    assert traces.current_traceparent() == ""


def test_an_absent_collector_holds_the_exit_up_for_no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_shutdowns", [lambda: time.sleep(30)] * 3)
    started = time.monotonic()
    export.stop(0.2)
    assert time.monotonic() - started < 1.0
