"""The messages of spans and log records are those of the exporters of the OpenTelemetry SDK, and reach a receiver."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from chassis.telemetry import log_export, otlp, span_export, traces
from chassis.telemetry.spans import RecordedSpan, SpanProvider

RESOURCE = Resource({"service.name": "gateway", "service.version": "v1", "service.instance.id": "i1"})
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
VALUES: dict[str, Any] = {
    "text": "/v1/orders",
    "unicode": "ünï ☕",
    "empty": "",
    "number": 200,
    "negative": -1,
    "largest": 2**63 - 1,
    "truth": True,
    "one": 1,
    "ratio": 1.5,
    "whole": 1.0,
    "texts": ["a", "b"],
    "numbers": (1, 2),
    "truths": [True, False],
    "long": "x" * 5000,
}


LONGEST = 2048
TIME = 1_700_000_000_000_000_000


def record(provider: trace.TracerProvider) -> None:
    """Makes spans of all kinds, with the same calls for every implementation of the API."""
    tracer = provider.get_tracer("waypost")
    remote = traces.caller_context([PARENT], ["a=1", "b=2"])
    with tracer.start_as_current_span("root", remote, SpanKind.SERVER, VALUES, start_time=TIME) as root:
        for kind in SpanKind:
            with tracer.start_as_current_span(f"{kind.name} child", kind=kind, start_time=TIME) as span:
                span.set_attributes({f"n{number}": number for number in range(30)})
                span.set_attribute("n1", "changed")
                span.set_status(Status(StatusCode.ERROR, "it broke") if kind is SpanKind.CLIENT else StatusCode.OK)
                span.set_status(StatusCode.UNSET)
                span.set_status(StatusCode.ERROR, "too late" if kind is SpanKind.SERVER else "it broke")
                for number in range(3):
                    span.add_event("rpc.retry", {"backoff": 0.5, "error.message": f"{number}" * 3000}, TIME + number)
        root.record_exception(ValueError("deep"), {"more": 1}, TIME)
        root.record_exception(grpc.RpcError("deep"), timestamp=TIME)
        root.update_name("renamed")
    with pytest.raises(KeyError), tracer.start_as_current_span("fails", start_time=TIME):
        raise KeyError("x" * 3000)
    ended = tracer.start_span("new trace", trace.set_span_in_context(trace.INVALID_SPAN), start_time=TIME)
    ended.end(TIME + 1)
    change(ended)
    links = [trace.Link(root.get_span_context(), VALUES)]
    tracer.start_span("linked", links=links, start_time=TIME).end()
    tracer.start_span("not recorded", traces.remote_context(PARENT[:-2] + "00")).end()


def change(span: trace.Span) -> None:
    """Changes everything of a span; after its end that has no effect."""
    span.set_attribute("late", 1)
    span.set_attributes({"late": 1})
    span.update_name("late")
    span.add_event("late")
    span.record_exception(ValueError("late"))
    span.set_status(StatusCode.ERROR)
    span.end(TIME + 9)
    assert not span.is_recording()


def our_spans() -> list[RecordedSpan]:
    ended: list[RecordedSpan] = []
    record(SpanProvider(ended.append))
    return ended


def spans_of_the_sdk() -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    limits = SpanLimits(max_attribute_length=LONGEST)
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    record(provider)
    return list(exporter.get_finished_spans())


def comparable(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Replaces what differs in each run: ids, the times of ends and of the event of a failure; sorts attributes."""
    spans = request.resource_spans[0].scope_spans[0].spans
    ids: dict[bytes, bytes] = {}
    for span in spans:
        for field in ("trace_id", "span_id", "parent_span_id"):
            setattr(span, field, known(ids, getattr(span, field)))
        for link in span.links:
            link.trace_id, link.span_id = known(ids, link.trace_id), known(ids, link.span_id)
        assert span.end_time_unix_nano > TIME
        span.end_time_unix_nano = 1
        span.attributes.sort(key=lambda each: each.key)
        if span.name == "fails":
            span.events[0].time_unix_nano = 1
            stack = next(each for each in span.events[0].attributes if each.key == "exception.stacktrace").value
            # It has a line of the implementation.
            stack.string_value = stack.string_value[:30]
    return request


def known(ids: dict[bytes, bytes], value: bytes) -> bytes:
    """Returns a number for an id, the same one at each place."""
    return ids.setdefault(value, bytes([len(ids)])) if value and value.hex() not in PARENT else value


def test_spans_are_sent_as_the_sdk_would_record_and_send_them() -> None:
    theirs = comparable(encode_spans(spans_of_the_sdk()))
    assert len(theirs.resource_spans[0].scope_spans[0].spans) == 9
    for _ in range(2):  # again, with the attributes that are kept now
        spans = our_spans()
        ours = ExportTraceServiceRequest.FromString(span_export.message(RESOURCE, spans, LONGEST).SerializeToString())
        assert comparable(ours) == theirs
    # Control: one span less is seen.
    assert comparable(span_export.message(RESOURCE, spans[1:], LONGEST)) != theirs


def test_of_too_many_events_the_first_are_sent() -> None:
    ended: list[RecordedSpan] = []
    span = SpanProvider(ended.append).get_tracer("waypost").start_span("work")
    for number in range(130):
        span.add_event("rpc.retry", timestamp=number)
    span.end()
    sent = span_export.message(RESOURCE, ended, LONGEST).resource_spans[0].scope_spans[0].spans[0]
    assert [event.time_unix_nano for event in sent.events] == list(range(128))
    assert sent.dropped_events_count == 2


def test_a_span_below_one_that_is_not_recorded_is_not_recorded() -> None:
    tracer = SpanProvider(pytest.fail).get_tracer("waypost")
    span = tracer.start_span("work", traces.remote_context(PARENT[:-2] + "00"))
    span.end()
    assert not span.is_recording()
    assert f"{span.get_span_context().trace_id:032x}" in PARENT


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
@pytest.mark.parametrize("header", [PARENT, PARENT[:-2] + "00", ""])
def test_a_log_record_is_sent_as_the_sdk_would_send_it(level: str, header: str) -> None:
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(
        resource=RESOURCE, shutdown_on_exit=False, log_record_limits=LogRecordLimits(max_attribute_length=2048)
    )
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    values = {key: value for key, value in VALUES.items() if not isinstance(value, list | tuple)}
    severity = SeverityNumber[{"warning": "WARN", "critical": "FATAL"}.get(level, level.upper())]
    record = values | {"event": "request", "level": level, "timestamp": "now", "service": "gateway", "trace_id": "1"}
    with traces.continued(header, "work"):
        provider.get_logger("waypost").emit(
            body="request", severity_text=level.upper(), severity_number=severity, attributes=values
        )
        entry = log_export.entry(record)
    theirs = encode_logs(exporter.get_finished_logs())
    ours = ExportLogsServiceRequest.FromString(log_export.message(RESOURCE, [entry], 2048).SerializeToString())
    for request in (ours, theirs):
        (sent,) = request.resource_logs[0].scope_logs[0].log_records
        assert sent.observed_time_unix_nano
        sent.observed_time_unix_nano = sent.time_unix_nano = 1
    assert ours == theirs


@pytest.mark.parametrize(
    ("value", "sent"),
    [(2**63, str(2**63)), (None, "None"), (b"x", "b'x'"), ("half \ud83d", "half ?"), (ValueError("x"), "x")],
)
def test_every_value_has_a_message(value: object, sent: str) -> None:
    (message,) = otlp.attributes({"key": value})
    assert message.value.string_value == sent


@pytest.mark.parametrize("values", [[1, True, 1.0, "1"], ["1", 1.0, True, 1]])
def test_equal_values_of_other_types_are_told_apart(values: list[object]) -> None:
    kinds = [otlp.attributes({"key": value})[0].value.WhichOneof("value") for value in values]
    names = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    assert kinds == [names[type(value)] for value in values]


# --- a receiver


class Receiver(grpc.GenericRpcHandler):
    """Accepts every call and keeps its path and message."""

    endpoint = ""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []

    def service(self, handler_call_details: Any) -> Any:
        def accept(message: bytes, _context: object) -> bytes:
            self.calls.append((handler_call_details.method, message))
            return b""

        return grpc.unary_unary_rpc_method_handler(accept)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made, server = Receiver(), grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((made,))
    made.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(None)


def test_spans_reach_a_receiver(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller decides how long a path, a user agent or the name of a method is: long attributes are cut."""
    made: list[trace.TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    stop = span_export.start_spans(RESOURCE, receiver.endpoint, 5, LONGEST)
    made[0].get_tracer("waypost").start_span("work", attributes={"long": "x" * 16_000, "short": "x"}).end()
    stop()
    ((path, sent),) = receiver.calls
    assert path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    (span,) = ExportTraceServiceRequest.FromString(sent).resource_spans[0].scope_spans[0].spans
    assert {each.key: len(each.value.string_value) for each in span.attributes} == {"long": LONGEST, "short": 1}


PROCESS = """
import sys
import structlog
from chassis.telemetry import export, logs, traces
from chassis.telemetry.metrics import Durations

logs.to_stdout("gateway")
export.start("gateway", "v1", "i1", sys.argv[1])
Durations("ours", "ms", "").series({"a": "b"}).record(1.0)
span = traces.start_span("work")
structlog.get_logger().info("placed")
span.end()
export.stop(10)
"""


def test_a_process_sends_each_signal_to_its_receiver(receiver: Receiver) -> None:
    """Our series are sent although nothing of the process records a metric of the SDK."""
    ran = subprocess.run([sys.executable, "-c", PROCESS, receiver.endpoint], capture_output=True, check=True)
    calls = {path.split(".")[-1]: message for path, message in receiver.calls}
    assert calls.keys() == {"TraceService/Export", "MetricsService/Export", "LogsService/Export"}
    spans = ExportTraceServiceRequest.FromString(calls["TraceService/Export"]).resource_spans[0]
    metrics = ExportMetricsServiceRequest.FromString(calls["MetricsService/Export"]).resource_metrics[0]
    logs = ExportLogsServiceRequest.FromString(calls["LogsService/Export"]).resource_logs[0]
    assert [span.name for span in spans.scope_spans[0].spans] == ["work"]
    assert [metric.name for metric in metrics.scope_metrics[0].metrics] == ["log.lines_lost", "ours"]
    assert [record.body.string_value for record in logs.scope_logs[0].log_records] == ["placed"]
    assert spans.resource == metrics.resource == logs.resource
    assert [each.value.string_value for each in spans.resource.attributes] == ["gateway", "v1", "i1"]
    assert json.loads(ran.stdout)["event"] == "placed"
