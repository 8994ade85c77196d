"""Exports traces, metrics and logs to an OTLP receiver, in batches and from threads of their own.

Invariant: no call waits for the receiver. If it is unreachable, telemetry is lost and stopping takes at most the
timeout of `stop`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from chassis.telemetry.log_export import start_logs
from chassis.telemetry.metric_export import MetricsExporter
from chassis.telemetry.span_export import SpanSender
from chassis.telemetry.traces import SAMPLER

METRIC_INTERVAL_SECONDS = 30.0
_EXPORT_SECONDS = 3.0
_LONGEST_ATTRIBUTE = 2048
"""Characters. A caller decides how long some are, and the telemetry store keeps them in memory."""
_shutdowns: list[Callable[[], object]] = []


def start(name: str, version: str, instance: str, endpoint: str) -> None:
    """Exports traces, metrics and logs of this process to the OTLP gRPC receiver at `endpoint` (a URL)."""
    # Resource.create would also load every detector plugin, which adds 40 ms to the start.
    resource = Resource({"service.name": name, "service.version": version, "service.instance.id": instance})
    _shutdowns[:] = [
        _start_traces(resource, endpoint),
        _start_metrics(resource, endpoint),
        start_logs(resource, endpoint, _EXPORT_SECONDS, _LONGEST_ATTRIBUTE),
    ]


def stop(timeout: float) -> None:
    """Exports pending telemetry and shuts the exporters down, within `timeout` seconds in all."""
    threads = [threading.Thread(target=_shut_down, args=(shutdown,), daemon=True) for shutdown in _shutdowns]
    ends_at = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))


def _start_traces(resource: Resource, endpoint: str) -> Callable[[], object]:
    limits = SpanLimits(max_attribute_length=_LONGEST_ATTRIBUTE)
    provider = TracerProvider(SAMPLER, resource, shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(SpanSender(resource, endpoint, _EXPORT_SECONDS))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _start_metrics(resource: Resource, endpoint: str) -> Callable[[], object]:
    reader = PeriodicExportingMetricReader(
        MetricsExporter(endpoint, insecure=True, timeout=_EXPORT_SECONDS),
        export_interval_millis=METRIC_INTERVAL_SECONDS * 1000,
        export_timeout_millis=_EXPORT_SECONDS * 1000,
    )
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _shut_down(shutdown: Callable[[], object]) -> None:
    try:
        shutdown()
    except Exception:
        logging.getLogger(__name__).debug("telemetry was not flushed", exc_info=True)
