"""The OpenTelemetry SDK behind chassis.telemetry: batches in threads, exporters made at the first batch.

Invariant: starting this is cheap; the exporters' 150 ms of imports are paid in a thread, off the start path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

_EXPORT_SECONDS = 3.0
Stop = Callable[[], object]


def start_traces(resource: Resource, endpoint: str) -> Stop:
    """Make the tracer provider of this process; returns what ends it."""
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Spans(endpoint), schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def start_metrics(resource: Resource, endpoint: str, interval: float) -> Stop:
    """Make the meter provider of this process, read every `interval` seconds; returns what ends it."""
    reader = PeriodicExportingMetricReader(
        _Metrics(endpoint),
        export_interval_millis=interval * 1000,
        export_timeout_millis=_EXPORT_SECONDS * 1000,
    )
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


class _Spans(SpanExporter):
    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - slow, see module

        return OTLPSpanExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Metrics(MetricExporter):
    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> MetricExporter:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - slow, see module

        return OTLPMetricExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        return self._exporter.export(metrics_data, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)
