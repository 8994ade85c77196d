"""Trace context, without a collector."""

from __future__ import annotations

import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from chassis.telemetry import export, traces

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> trace.Tracer:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    monkeypatch.setattr(traces, "tracer", lambda: tracer)
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


def test_outside_of_a_trace_there_is_no_traceparent() -> None:
    assert traces.current_traceparent() == ""


def test_an_absent_collector_holds_the_exit_up_for_no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_shutdowns", [lambda: time.sleep(30)] * 3)
    started = time.monotonic()
    export.stop(0.2)
    assert time.monotonic() - started < 1.0
