"""Exports metrics over OTLP, at a fixed interval and in a thread of the SDK."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

_EXPORT_SECONDS = 3.0


def start_metrics(resource: Resource, endpoint: str, interval: float) -> Callable[[], object]:
    """Installs the meter provider of this process, exported every `interval` seconds; returns its shutdown function."""
    reader = PeriodicExportingMetricReader(
        LazyMetricExporter(endpoint),
        export_interval_millis=interval * 1000,
        export_timeout_millis=_EXPORT_SECONDS * 1000,
    )
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


class LazyMetricExporter(MetricExporter):
    """Makes the OTLP exporter at the first export."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> MetricExporter:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - 150 ms

        return OTLPMetricExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Sends the metrics; called by the SDK."""
        return self._exporter.export(metrics_data, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Waits for pending exports; called by the SDK."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Closes the channel to the collector; called by the SDK."""
        self._exporter.shutdown(timeout_millis, **kwargs)
