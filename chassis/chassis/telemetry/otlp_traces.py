"""Exports spans over OTLP, in batches and in a thread of the SDK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

_EXPORT_SECONDS = 3.0


def start_traces(resource: Resource, endpoint: str) -> Callable[[], object]:
    """Installs the tracer provider of this process; returns its shutdown function."""
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(LazySpanExporter(endpoint), schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    return provider.shutdown


class LazySpanExporter(SpanExporter):
    """Makes the OTLP exporter at the first batch."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @cached_property
    def _exporter(self) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - 150 ms

        return OTLPSpanExporter(self._endpoint, insecure=True, timeout=_EXPORT_SECONDS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch; called by the SDK."""
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Closes the channel to the collector; called by the SDK."""
        self._exporter.shutdown()
