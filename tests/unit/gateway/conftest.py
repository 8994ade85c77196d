"""Fixtures of the gateway's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import pytest_asyncio
import uvloop
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis.telemetry.spans import SpanProvider

from .running_gateway import RunningGateway, running


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Runs the tests on the event loop that the gateway uses."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def spans() -> InMemorySpanExporter:
    """Collects every finished span."""
    exporter = InMemorySpanExporter()
    trace.set_tracer_provider(SpanProvider(lambda span: exporter.export([cast(Any, span)])))
    return exporter


@pytest.fixture
async def gateway(spans: InMemorySpanExporter) -> AsyncIterator[RunningGateway]:
    """A gateway of this test alone."""
    async with running() as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway(spans: InMemorySpanExporter) -> AsyncIterator[RunningGateway]:
    """One gateway for a module whose tests do not change it."""
    async with running() as gateway:
        yield gateway
