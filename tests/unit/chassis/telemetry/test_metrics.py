"""Our own histograms and counters give the message that those of the OpenTelemetry SDK give."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from chassis.telemetry import export, metrics
from chassis.telemetry.metrics import Counts, Durations

RESOURCE = Resource({"service.name": "gateway"})
GET: dict[str, str | int] = {"http.request.method": "GET", "http.response.status_code": 200}
POST: dict[str, str | int] = {"http.request.method": "POST", "http.response.status_code": 503, "error.type": "503"}
VALUES = [0.0, 0.001, 4.9999, 5.0, 5.0001, 12.5, 99, 100, 10_000.0, 10_000.1, 1e9, -1.0]
SAMPLED = NonRecordingSpan(SpanContext(0xAB, 0xCD, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
UNSAMPLED = NonRecordingSpan(SpanContext(0xEF, 0x12, is_remote=False))


class Sdk:
    """A meter of the SDK and what it would send."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meter = MeterProvider([self.reader], RESOURCE, shutdown_on_exit=False).get_meter("waypost")

    def data(self) -> MetricsData:
        return self.reader.get_metrics_data() or MetricsData([])


@pytest.fixture(autouse=True)
def _only_instruments_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_instruments", [])


def sent(data: MetricsData) -> dict[str, metrics_pb2.Metric]:
    """Decodes the message of the exporter, all times as 1."""
    message = type(encode_metrics(data)).FromString(encode_metrics(data).SerializeToString())
    (resource,) = message.resource_metrics
    assert [(each.key, each.value.string_value) for each in resource.resource.attributes] == [
        ("service.name", "gateway")
    ]
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("waypost", "")
    found = {metric.name: metric for metric in scope.metrics}
    for metric in found.values():
        points: Any = getattr(metric, metric.WhichOneof("data")).data_points
        points.sort(key=lambda point: str(sorted(str(each) for each in point.attributes)))
        for point in points:
            assert 0 < point.start_time_unix_nano <= point.time_unix_nano
            point.start_time_unix_nano = point.time_unix_nano = 1
            point.attributes.sort(key=lambda each: each.key)
            for exemplar in point.exemplars:
                assert exemplar.time_unix_nano
                exemplar.time_unix_nano = 1
    return found


def pair(bounds: tuple[float, ...] = metrics.BOUNDS) -> tuple[Durations, Any, Sdk]:
    """Returns a histogram of ours and one of the SDK with other names and the same rest."""
    sdk = Sdk()
    ours = Durations("ours", "ms", "duration of a call", bounds)
    advisory = None if bounds is metrics.BOUNDS else list(bounds)
    theirs = sdk.meter.create_histogram(
        "theirs", "ms", "duration of a call", explicit_bucket_boundaries_advisory=advisory
    )
    return ours, theirs, sdk


def assert_same(sdk: Sdk) -> metrics_pb2.Metric:
    found = sent(export.with_own_series(sdk.data(), 2**62))
    found["theirs"].name = "ours"
    assert found["ours"] == found["theirs"]
    return found["ours"]


@pytest.mark.parametrize("bounds", [metrics.BOUNDS, (0.01, 0.5, 60.0), ()])
def test_a_histogram_is_sent_as_the_sdk_would_send_it(bounds: tuple[float, ...]) -> None:
    ours, theirs, sdk = pair(bounds)
    for value in VALUES:
        for attributes in (GET, POST):
            ours.series(attributes).record(value)
            theirs.record(value, attributes)
    metric = assert_same(sdk)
    assert [point.count for point in metric.histogram.data_points] == [len(VALUES) - 1] * 2
    # Control: a value on one side alone is seen.
    ours.series(GET).record(1)
    with pytest.raises(AssertionError):
        assert_same(sdk)


def test_values_are_cumulative_and_exemplars_are_those_since_the_last_message() -> None:
    ours, theirs, sdk = pair()
    with trace.use_span(SAMPLED):
        for value in (3.0, 4.0, 30.0):
            ours.series(GET).record(value)
            theirs.record(value, GET)
    (point,) = assert_same(sdk).histogram.data_points
    # The last value of a bucket.
    assert [each.as_double for each in point.exemplars] == [4.0, 30.0]
    assert {(each.trace_id.hex(), each.span_id.hex()) for each in point.exemplars} == {("ab".zfill(32), "cd".zfill(16))}
    ours.series(GET).record(7.0)
    theirs.record(7.0, GET)
    (point,) = assert_same(sdk).histogram.data_points
    assert (point.count, point.sum, list(point.exemplars)) == (4, 44.0, [])


@pytest.mark.parametrize("span", [UNSAMPLED, trace.INVALID_SPAN])
def test_a_trace_that_is_not_recorded_is_no_exemplar(span: trace.Span) -> None:
    ours, theirs, sdk = pair()
    with trace.use_span(span):
        ours.series(GET).record(3.0)
        theirs.record(3.0, GET)
    (point,) = assert_same(sdk).histogram.data_points
    assert not point.exemplars


def test_the_span_of_an_exemplar_may_be_given() -> None:
    ours, _, _ = pair()
    ours.series(GET).record(3.0, SAMPLED)
    with trace.use_span(SAMPLED):
        ours.series(GET).record(30.0, UNSAMPLED)
    point = ours.series(GET).point(1)
    assert point is not None
    assert [each.trace_id for each in point.exemplars] == [0xAB]


def test_a_counter_is_sent_as_the_sdk_would_send_it() -> None:
    sdk = Sdk()
    ours, theirs = Counts("ours", "1", "retries"), sdk.meter.create_counter("theirs", "1", "retries")
    for amount in (1, 1, 5):
        ours.series(GET).add(amount)
        theirs.add(amount, GET)
    ours.series(POST)  # a series without a value is not sent
    metric = assert_same(sdk)
    assert [point.as_int for point in metric.sum.data_points] == [7]


def test_attributes_in_any_order_are_one_series() -> None:
    ours = Durations("ours", "ms", "")
    assert ours.series(GET) is ours.series(dict(reversed(GET.items())))
    assert ours.series(GET) is not ours.series(POST)


def test_series_without_end_share_one() -> None:
    """A caller that finds a way to invent attributes must not fill the memory."""
    ours = Durations("ours", "ms", "")
    for number in range(3000):
        ours.series({"number": number}).record(1)
    metric = ours.metric(1)
    assert metric is not None
    points = {point.attributes["number"]: point for point in metric.data.data_points if "number" in point.attributes}  # type: ignore[operator, index]
    (rest,) = [point for point in metric.data.data_points if point.attributes == {"otel.metric.overflow": True}]
    assert len(points) == 2000
    assert rest.count == 1000  # type: ignore[union-attr]


def test_no_value_is_lost_between_threads() -> None:
    ours = Durations("ours", "ms", "", (1.0,))
    counter = Counts("counter", "1", "")
    collected: list[int] = []
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            point = ours.series(GET).point(1)
            if point is not None:
                # One moment: count, sum and buckets belong together.
                assert point.sum == point.count == sum(point.bucket_counts)
                collected.append(point.count)

    def write() -> None:
        for _ in range(20_000):
            ours.series(GET).record(1.0)
            counter.series(GET).add(1)

    collecting = threading.Thread(target=collect)
    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in (collecting, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    collecting.join()
    point, count = ours.series(GET).point(1), counter.series(GET).point(1)
    assert point is not None
    assert count is not None
    assert (point.count, point.bucket_counts, count.value) == (60_000, [60_000, 0], 60_000)
    assert collected == sorted(collected)


def test_the_bounds_are_those_of_the_specification() -> None:
    assert list(metrics.BOUNDS) == sorted(metrics.BOUNDS)
    assert all(math.isfinite(bound) for bound in metrics.BOUNDS)


def test_the_exporter_sends_our_series_with_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[MetricsData] = []

    def keep(_self: object, data: MetricsData, *_args: object, **_kwargs: object) -> MetricExportResult:
        exported.append(data)
        return MetricExportResult.SUCCESS

    monkeypatch.setattr(export.OTLPMetricExporter, "export", keep)
    sdk = Sdk()
    sdk.meter.create_counter("theirs").add(1)
    Durations("ours", "ms", "").series(GET).record(1)
    exporter = export.MetricsExporter("http://127.0.0.1:9", insecure=True)
    assert exporter.export(sdk.data()) is MetricExportResult.SUCCESS
    exporter.shutdown()
    assert sent(exported[0]).keys() == {"theirs", "ours"}


def test_a_scope_that_the_sdk_does_not_send_is_added() -> None:
    reader = InMemoryMetricReader()
    MeterProvider([reader], RESOURCE, shutdown_on_exit=False).get_meter("other").create_counter("theirs").add(1)
    Durations("ours", "ms", "").series(GET).record(1)
    data = export.with_own_series(reader.get_metrics_data() or MetricsData([]), 2**62)
    (resource,) = data.resource_metrics
    assert [(scope.scope.name, [m.name for m in scope.metrics]) for scope in resource.scope_metrics] == [
        ("other", ["theirs"]),
        ("waypost", ["ours"]),
    ]
