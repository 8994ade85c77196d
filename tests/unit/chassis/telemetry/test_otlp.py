"""The messages of spans and log records are those of the exporters of the OpenTelemetry SDK, and `add` never waits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
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
from support.waiting import until

from chassis.telemetry import log_export, otlp, span_export, traces

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


def spans_of_all_kinds() -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    limits = SpanLimits(max_attribute_length=2048, max_span_attributes=20, max_events=2)
    provider = TracerProvider(traces.SAMPLER, RESOURCE, shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("waypost")
    remote = traces.caller_context([PARENT], ["a=1", "b=2"])
    with tracer.start_as_current_span("root", remote, SpanKind.SERVER, VALUES) as root:
        for kind in SpanKind:
            with tracer.start_as_current_span(f"{kind.name} child", kind=kind) as span:
                span.set_attributes({f"n{number}": number for number in range(30)})
                span.set_status(Status(StatusCode.ERROR, "it broke") if kind is SpanKind.CLIENT else StatusCode.OK)
                for number in range(3):
                    span.add_event("rpc.retry", {"backoff": 0.5, "error.message": f"late {number}"})
        root.record_exception(ValueError("deep"))
    tracer.start_span("new trace", trace.set_span_in_context(trace.INVALID_SPAN)).end()
    links = [trace.Link(root.get_span_context(), VALUES)]
    tracer.start_span("linked", links=links).end()
    return list(exporter.get_finished_spans())


def test_spans_are_sent_as_the_sdk_would_send_them() -> None:
    spans = spans_of_all_kinds()
    assert len(spans) == 8
    ours = ExportTraceServiceRequest.FromString(span_export.message(RESOURCE, spans).SerializeToString())
    assert ours == encode_spans(spans)
    # Again, with the attributes that are kept now.
    assert span_export.message(RESOURCE, spans) == encode_spans(spans)
    # Control: one span less is seen.
    assert span_export.message(RESOURCE, spans[1:]) != encode_spans(spans)


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


# --- batches


async def test_items_are_sent_together_after_the_delay() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 0.1)
    for number in range(5):
        sender.add(number)
    assert sent == []
    await until("they are sent", lambda: bool(sent))
    sender.add(5)
    await until("the next one is sent", lambda: len(sent) == 2)
    assert sent == [[0, 1, 2, 3, 4], [5]]
    sender.close()


async def test_a_full_batch_does_not_wait() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 60)
    for number in range(512):
        sender.add(number)
    await until("they are sent", lambda: bool(sent))
    sender.close()
    assert [number for batch in sent for number in batch] == list(range(512))


def test_closing_sends_what_is_left() -> None:
    sent: list[list[int]] = []
    sender = otlp.BatchSender("test", sent.append, 60)
    for number in range(1000):
        sender.add(number)
    sender.close()
    sender.add(1000)
    assert [number for batch in sent for number in batch] == list(range(1000))


def lost(signal: str) -> int:
    """What the metric `telemetry.lost` counts for a signal."""
    point = otlp._lost.series({"signal": signal}).point(0)
    return int(point.value) if point else 0


def test_a_receiver_that_hangs_delays_no_call_and_the_rest_is_dropped() -> None:
    gate, sent = threading.Event(), list[list[int]]()

    def send(batch: list[int]) -> None:
        gate.wait()
        sent.append(batch)

    sender = otlp.BatchSender("hanging", send, 0)
    began = time.monotonic()
    for number in range(20_000):
        sender.add(number)
    assert time.monotonic() - began < 2
    gate.set()
    sender.close()
    kept = sum(len(batch) for batch in sent)
    assert 2048 <= kept <= 2048 + 512
    assert lost("hanging") == 20_000 - kept


async def test_a_batch_that_fails_is_lost_and_counted_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[list[int]] = []

    def send(batch: list[int]) -> None:
        if batch != [9]:
            raise ValueError("receiver")
        sent.append(batch)

    sender = otlp.BatchSender("failing", send, 0)
    for number in (0, 1):
        sender.add(number)
        await until("it is lost", lambda number=number: lost("failing") == number + 1)
    sender.add(9)
    await until("the next is sent", lambda: sent == [[9]])
    sender.close()
    assert [record.message for record in caplog.records] == [
        "telemetry is lost until the receiver takes it again: receiver"
    ]


def test_no_item_of_several_threads_is_lost() -> None:
    sent: list[int] = []
    sender = otlp.BatchSender("test", sent.extend, 0)

    def add(offset: int) -> None:
        for number in range(500):
            sender.add(offset + number)
            time.sleep(0.00001)

    threads = [threading.Thread(target=add, args=(offset,)) for offset in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends_at = time.monotonic() + 20
    while len(sent) < 1500 and time.monotonic() < ends_at:  # without `close`: none may be left behind
        time.sleep(0.01)
    assert len(set(sent)) == 1500
    sender.close()


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


def test_spans_reach_a_receiver(receiver: Receiver) -> None:
    (span, *_) = spans_of_all_kinds()
    sender = span_export.SpanSender(RESOURCE, receiver.endpoint, 5)
    sender.on_end(span)
    sender.shutdown()
    ((path, sent),) = receiver.calls
    assert path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert ExportTraceServiceRequest.FromString(sent) == encode_spans([span])


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
