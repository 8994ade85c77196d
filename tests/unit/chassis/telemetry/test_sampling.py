"""The rate of recorded traces, with a clock of its own, and the place where it is decided."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from chassis.telemetry import traces
from chassis.telemetry.sampling import TraceRate
from chassis.telemetry.spans import SpanProvider

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def never() -> float:
    """A chance that no share below 1 reaches."""
    return 0.999_999


def admitted(rate: TraceRate, offered: int) -> int:
    return sum(rate.admits() for _ in range(offered))


def test_before_the_settings_are_read_every_trace_is_recorded(clock: Clock) -> None:
    assert admitted(TraceRate(clock), 1000) == 1000


def test_a_burst_is_recorded_up_to_the_traces_of_one_second(clock: Clock) -> None:
    rate = TraceRate(clock, never)
    rate.change(20, 0.01)
    clock.now += 3600
    assert admitted(rate, 1000) == 20


@pytest.mark.parametrize(
    ("per_second", "share", "recorded"), [(20, 0.01, 100), (0, 0.01, 100), (20, 0, 100), (0, 0, 0)]
)
def test_what_the_edge_records_is_recorded_unless_nothing_is(
    clock: Clock, per_second: float, share: float, recorded: int
) -> None:
    rate = TraceRate(clock, never)
    rate.change(per_second, share)
    assert sum(rate.admits(recorded_before=True) for _ in range(100)) == recorded


@pytest.mark.parametrize("offered", [1, 19, 20, 21, 500])
def test_each_second_has_its_traces(clock: Clock, offered: int) -> None:
    rate = TraceRate(clock, never)
    rate.change(20, 0.01)
    recorded = []
    for _ in range(10):
        clock.now += 1.0
        recorded.append(admitted(rate, offered))
    assert recorded == [min(offered, 20)] * 10


def test_an_even_load_is_recorded_evenly(clock: Clock) -> None:
    """A second that begins with its whole number would record the first requests only."""
    rate = TraceRate(clock, never)
    rate.change(20, 0)
    admitted(rate, 100)
    recorded = []
    for _ in range(400):
        clock.now += 1 / 400
        recorded.append(rate.admits())
    gaps = [index for index, each in enumerate(recorded) if each]
    assert 19 <= len(gaps) <= 20
    assert max(after - before for before, after in pairwise(gaps)) <= 21


def test_a_share_of_the_others_is_recorded(clock: Clock) -> None:
    rate = TraceRate(clock, random.Random(1).random)
    rate.change(0, 0.01)
    assert 60 <= admitted(rate, 10_000) <= 140
    rate.change(0, 0)
    assert admitted(rate, 10_000) == 0
    rate.change(0, 1)
    assert admitted(rate, 10_000) == 10_000


def test_less_than_one_trace_a_second_is_recorded_too(clock: Clock) -> None:
    rate = TraceRate(clock, never)
    rate.change(0.1, 0)
    recorded = 0
    for _ in range(100):
        clock.now += 1.0
        recorded += admitted(rate, 5)
    assert 9 <= recorded <= 10


def test_a_changed_rate_applies_to_the_next_trace(clock: Clock) -> None:
    rate = TraceRate(clock, never)
    rate.change(5, 0)
    clock.now += 1
    assert admitted(rate, 100) == 5
    rate.change(50, 0)
    clock.now += 1
    assert admitted(rate, 100) == 50


def test_no_trace_is_recorded_from_the_moment_at_which_both_settings_are_zero(clock: Clock) -> None:
    rate = TraceRate(clock, never)
    rate.change(5, 0)
    clock.now += 1
    rate.change(0, 0)
    assert admitted(rate, 10) == 0


# --- where it is decided


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> TraceRate:
    """A rate that admits nothing, and a tracer that would record everything."""
    rate = TraceRate(clock, never)
    rate.change(0, 0)
    monkeypatch.setattr(traces, "trace_rate", rate)
    monkeypatch.setattr(traces, "_tracer", SpanProvider(lambda _: None).get_tracer("test"))
    return rate


def caller(flags: str) -> otel_context.Context:
    context = traces.caller_context([f"00-{TRACE}-{PARENT}-{flags}"], ["a=1"])
    assert context is not None
    return context


def test_a_trace_that_begins_here_is_decided_by_the_rate(rate: TraceRate) -> None:
    first = traces.start_span("work")
    rate.change(0, 1)
    second = traces.start_span("work")
    assert (first.is_recording(), second.is_recording()) == (False, True)
    assert first.get_span_context().is_valid
    assert traces.traceparent(first).endswith("-02")
    assert traces.traceparent(second)[-2:] == "03"


@pytest.mark.parametrize(("flags", "recorded"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_a_service_follows_the_flag_of_its_caller(rate: TraceRate, flags: str, recorded: bool) -> None:
    span = traces.start_span("work", parent=caller(flags), kind=SpanKind.SERVER)
    assert span.is_recording() is recorded
    assert traces.traceparent(span)[3:35] == TRACE
    assert dict(traces.trace_headers(span))["tracestate"] == "a=1"
    assert traces.traceparent(span)[-2:] == flags


@pytest.mark.parametrize("admitted", [0, 1])
@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_a_caller_from_outside_does_not_decide(rate: TraceRate, flags: str, admitted: int) -> None:
    rate.change(0, admitted)
    span = traces.start_entry_span("GET", caller(flags), kind=SpanKind.SERVER)
    assert span.is_recording() is bool(admitted)
    version, trace_id, span_id, own = traces.traceparent(span).split("-")
    assert (version, trace_id) == ("00", TRACE)
    assert span_id not in (PARENT, "0" * 16)
    # Whether the trace id is random is what the caller says.
    assert int(own, 16) == admitted | int(flags, 16) & 2
    assert dict(traces.trace_headers(span))["tracestate"] == "a=1"


def test_the_attributes_of_a_trace_that_is_not_recorded_are_not_computed(rate: TraceRate) -> None:
    computed: list[str] = []

    def attributes() -> dict[str, str]:
        computed.append("computed")
        return {"url.path": "/"}

    traces.start_entry_span("GET", None, kind=SpanKind.SERVER, attributes=attributes)
    assert not computed
    rate.change(0, 1)
    span = traces.start_entry_span("GET", None, kind=SpanKind.SERVER, attributes=attributes)
    assert computed
    assert span.is_recording()


def test_below_a_trace_that_is_not_recorded_no_span_is_made(rate: TraceRate) -> None:
    root = traces.start_span("root")
    rate.change(0, 1)  # a decision that is made again would record the child
    with trace.use_span(root):
        child = traces.start_span("child", kind=SpanKind.CLIENT, attributes={"a": 1})
    assert child is root
    child.set_attribute("b", 2)
    child.end()


def test_below_a_recorded_trace_each_span_is_its_own(rate: TraceRate) -> None:
    """Control."""
    rate.change(0, 1)
    root = traces.start_span("root")
    rate.change(0, 0)
    with trace.use_span(root):
        child = traces.start_span("child")
    assert child.is_recording()
    assert child.get_span_context().trace_id == root.get_span_context().trace_id
    assert child.get_span_context().span_id != root.get_span_context().span_id
