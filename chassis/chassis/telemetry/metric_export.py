"""Exports the metrics of the SDK to an OTLP receiver, together with the `Durations` and `Counts` of this process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from chassis.telemetry.metrics import SCOPE, collect


class MetricsExporter(OTLPMetricExporter):
    """The exporter of the SDK, which sends our own series in the same message.

    The SDK calls it only if it has a value itself; `log.lines_lost` always has one.
    """

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Called by the SDK in a thread of its own."""
        return super().export(with_own_series(metrics_data, time.time_ns()), timeout_millis, **kwargs)


def with_own_series(data: MetricsData, now: int) -> MetricsData:
    """Returns the metrics of the SDK and our own, which belong to the same resource and scope."""
    return MetricsData([_added(resource, now) for resource in data.resource_metrics])


def _added(resource: ResourceMetrics, now: int) -> ResourceMetrics:
    own = collect(now)
    of_others = [scope for scope in resource.scope_metrics if scope.scope.name != SCOPE]
    same = [scope for scope in resource.scope_metrics if scope.scope.name == SCOPE]
    scope = same[0] if same else ScopeMetrics(InstrumentationScope(SCOPE), [], "")
    return replace(resource, scope_metrics=[*of_others, replace(scope, metrics=[*scope.metrics, *own])])
