"""Fixtures of the gateway's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
import uvloop
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from .system import System, running


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def spans() -> InMemorySpanExporter:
    """Every span that was ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
async def system(spans: InMemorySpanExporter) -> AsyncIterator[System]:
    """A system of one's own."""
    async with running() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(spans: InMemorySpanExporter) -> AsyncIterator[System]:
    """One system for a whole module whose tests change nothing in it."""
    async with running() as one:
        yield one
