"""A caller decides neither how many series there are, nor whether a request is recorded, nor how the log looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import until

from chassis.telemetry import traces
from chassis.telemetry.metrics import Durations
from chassis.telemetry.sampling import TraceRate
from gateway.http import request_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..running_gateway import RunningGateway

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ORDER = "/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40"


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Durations]:
    """The durations of the requests of one test."""
    durations = Durations("http.server.request.duration", "s", "")
    monkeypatch.setattr(request_telemetry, "_durations", durations)
    request_telemetry._series.cache_clear()
    yield durations
    request_telemetry._series.cache_clear()


def points(durations: Durations) -> list[Any]:
    metric = durations.metric(1)
    return list(metric.data.data_points) if metric else []


def series(durations: Durations) -> list[Mapping[str, Any]]:
    """Returns the attributes of each series of the durations."""
    return [point.attributes or {} for point in points(durations)]


async def span_of(spans: InMemorySpanExporter, trace_id: str) -> ReadableSpan:
    """Returns the gateway's own span of a trace."""

    def found() -> list[ReadableSpan]:
        return [
            span
            for span in spans.get_finished_spans()
            if f"{span.context.trace_id:032x}" == trace_id and "http.request.method" in (span.attributes or {})
        ]

    await until("the span is recorded", lambda: bool(found()))
    (span,) = found()
    return span


def trace_of(response: Any) -> str:
    return str(response.headers["traceresponse"].split("-")[1])


# --- series


async def test_invented_methods_and_paths_are_one_series(gateway: RunningGateway, metrics: Durations) -> None:
    for number in range(30):
        await gateway.http.request(f"M{number}", f"/v1/users?n={number}", headers={"user-agent": f"agent {number}"})
        await gateway.http.request(f"M{number}", f"/nowhere/{number}")
    assert {each["http.request.method"] for each in series(metrics)} == {"_OTHER"}
    assert len(series(metrics)) == 2
    assert sum(point.count for point in points(metrics)) == 60


async def test_values_of_a_caller_are_no_series(gateway: RunningGateway, metrics: Durations) -> None:
    """Control: the same requests with known methods are the series that they should be."""
    token = await gateway.guest()
    for number in range(10):
        made_up = {
            "user-agent": f"agent {number}",
            "x-scheme": f"s{number}",
            "x-forwarded-proto": f"s{number}",
            "x-forwarded-for": f"192.0.2.{number}",
            "forwarded": f"for=192.0.2.{number};proto=s{number}",
            "host": f"host{number}",
            "upgrade": "websocket",
        }
        await gateway.http.get(f"/v1/orders/{number}", headers=token | made_up)
        await gateway.http.get(f"/problems/name-{number}", headers=made_up)
    of_reads = [each for each in series(metrics) if each["http.request.method"] == "GET"]
    assert sorted(each["http.route"] for each in of_reads) == ["/problems/{name}", "/v1/orders/{order_id}"]
    allowed = {"http.request.method", "http.route", "http.response.status_code", "url.scheme", "error.type"}
    assert {name for each in series(metrics) for name in each} <= allowed
    assert {each["url.scheme"] for each in of_reads} == {"http"}


@pytest.mark.parametrize("method", ["BREW", "get", "_OTHER", "PROPFIND", "!#$%", "HTTP"])
async def test_the_span_of_an_unknown_method_has_the_original(
    gateway: RunningGateway, spans: InMemorySpanExporter, method: str
) -> None:
    response = await gateway.raw(f"{method} /v1/users HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
    trace_id = response.partition(b"traceresponse: 00-")[2][:32].decode()
    span = await span_of(spans, trace_id)
    attributes = span.attributes or {}
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes["http.request.method_original"] == method
    assert span.name == "HTTP"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_the_span_of_a_known_method_has_no_original(
    gateway: RunningGateway, spans: InMemorySpanExporter, method: str
) -> None:
    response = await gateway.http.request(method, ORDER)
    span = await span_of(spans, trace_of(response))
    attributes = span.attributes or {}
    assert attributes["http.request.method"] == method
    assert "http.request.method_original" not in attributes
    assert span.name.split()[0] == method


# --- traces


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "fe", "ff"])
async def test_a_request_is_recorded_whatever_the_flags_of_its_caller_say(
    gateway: RunningGateway, spans: InMemorySpanExporter, flags: str
) -> None:
    token = await gateway.guest()
    spans.clear()
    response = await gateway.http.get(ORDER, headers=token | {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
    version, trace_id, _, own = response.headers["traceresponse"].split("-")
    assert (version, trace_id, int(own, 16) & 1) == ("00", TRACE, 1)
    span = await span_of(spans, TRACE)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    names = {each.name for each in spans.get_finished_spans() if each.kind.name == "SERVER"}
    assert names == {"GET /v1/orders/{order_id}", "shop.order.v1.OrderService/GetOrder"}


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)],
        [("traceparent", TRACEPARENT), ("traceparent", f"00-{'1' * 32}-{PARENT}-01")],
        [("traceparent", TRACEPARENT), ("Traceparent", "garbage")],
        [("traceparent", ""), ("traceparent", TRACEPARENT)],
        [("traceparent", f"{TRACEPARENT},{TRACEPARENT}")],
        [("traceparent", f"{TRACEPARENT}, 00-{'1' * 32}-{PARENT}-01")],
        [("traceparent", TRACEPARENT.upper())],
        [("traceparent", f"ff{TRACEPARENT[2:]}")],
        [("traceparent", f"{TRACEPARENT}-more")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", f"00-{TRACE}-{PARENT}-0")],
        [("traceparent", f"00-{TRACE}-{PARENT}-zz")],
        [("traceparent", "0" * 600)],
        [("tracestate", "a=1")],
    ],
)
async def test_other_than_one_valid_traceparent_begins_a_new_trace(
    gateway: RunningGateway, spans: InMemorySpanExporter, headers: list[tuple[str, str]]
) -> None:
    spans.clear()
    response = await gateway.http.get("/v1/users/me", headers=[*headers, ("tracestate", "a=1")])
    assert trace_of(response) not in (TRACE, "1" * 32, "0" * 32)
    span = await span_of(spans, trace_of(response))
    assert span.parent is None
    assert not span.context.trace_state


@pytest.mark.parametrize(
    ("states", "passed_on"),
    [
        (["a=1"], "a=1"),
        (["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1 , ,b=2"], "a=1,b=2"),
        ([], ""),
        ([""], ""),
        (["garbage"], ""),
        (["a=1,a=2"], ""),
        (["a=\xe9"], ""),
        ([",".join(f"k{number}=1" for number in range(33))], ""),
        (["a=" + "1" * 600], ""),
    ],
)
async def test_a_valid_tracestate_reaches_the_service(
    gateway: RunningGateway, spans: InMemorySpanExporter, states: list[str], passed_on: str
) -> None:
    token = await gateway.guest()
    spans.clear()
    headers = [*token.items(), ("traceparent", TRACEPARENT), *(("tracestate", state) for state in states)]
    sent = [(name.encode(), value.encode()) for name, value in headers]
    response = await gateway.http.get(ORDER, headers=sent)
    assert trace_of(response) == TRACE
    await span_of(spans, TRACE)
    servers = [span for span in spans.get_finished_spans() if span.kind.name == "SERVER"]
    assert [span.context.trace_state.to_header() for span in servers] == [passed_on] * 2


# --- what the rate does not admit


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> TraceRate:
    """A rate that admits no trace."""
    rate = TraceRate()
    rate.change(0, 0)
    monkeypatch.setattr(traces, "trace_rate", rate)
    return rate


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", None])
async def test_a_trace_beyond_the_rate_has_its_id_and_no_span(
    gateway: RunningGateway,
    spans: InMemorySpanExporter,
    unrecorded: TraceRate,
    metrics: Durations,
    flags: str | None,
) -> None:
    token = await gateway.guest()
    spans.clear()
    header = {} if flags is None else {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
    first = await gateway.http.get(ORDER, headers=token | header)
    second = await gateway.http.get("/nowhere", headers=header)
    assert spans.get_finished_spans() == ()
    for response in (first, second):
        version, trace_id, span_id, own = response.headers["traceresponse"].split("-")
        assert (version, len(trace_id), int(own, 16) & 1) == ("00", 32, 0)
        assert (trace_id == TRACE) is (flags is not None)
        assert span_id not in (PARENT, "0" * 16)
    assert second.json()["trace_id"] == trace_of(second)
    read = [point for point in points(metrics) if "http.route" in point.attributes][-1]
    assert not read.exemplars
    # Control: the next request is recorded, in both processes.
    unrecorded.change(0, 1)
    third = await gateway.http.get(ORDER, headers=token | header)
    assert int(third.headers["traceresponse"][-2:], 16) & 1
    await span_of(spans, trace_of(third))
    servers = [span for span in spans.get_finished_spans() if span.kind.name == "SERVER"]
    assert len(servers) == 2
    read = [point for point in points(metrics) if "http.route" in point.attributes][-1]
    assert [f"{each.trace_id:032x}" for each in read.exemplars] == [trace_of(third)]


@pytest.mark.parametrize(("trusted", "recorded"), [(["127.0.0.0/8"], 1), ([], 0)])
async def test_what_the_edge_records_is_recorded_beyond_the_rate_and_nobody_else_can_ask_for_it(
    gateway: RunningGateway, unrecorded: TraceRate, monkeypatch: pytest.MonkeyPatch, trusted: list[str], recorded: int
) -> None:
    gateway.change(trusted_proxies=tuple(trusted))
    monkeypatch.setattr(unrecorded, "_chance", lambda: 0.999_999)
    unrecorded.change(0, 0.01)
    for header, expected in (({"x-edge-recorded": "1"}, recorded), ({}, 0)):
        response = await gateway.http.get("/nowhere", headers=header)
        assert int(response.headers["traceresponse"].split("-")[3], 16) & 1 == expected
