"""Cursors that record each statement as a span, and a check of idle connections that costs no round trip.

Invariant: a span holds the text of a statement, never its parameters; without a trace around it there is no span.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.sql import Composable
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from chassis import telemetry

Row = TypeVar("Row")

_tracer = telemetry.tracer()


class TracedAsyncCursor(AsyncCursor[Row]):
    """psycopg's cursor with a client span around `execute`."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> TracedAsyncCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            await super().execute(query, params, **options)
        return self


class TracedCursor(Cursor[Row]):
    """The same for sync connections."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> TracedCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            super().execute(query, params, **options)
        return self


async def alive(connection: AsyncConnection[Any]) -> None:
    """Raise when an idle connection is lost. The server speaks unasked only to say goodbye, so silence is health."""
    if _spoken(connection.fileno()):
        await AsyncConnectionPool.check_connection(connection)


def alive_sync(connection: Connection[Any]) -> None:
    """The same for sync connections."""
    if _spoken(connection.fileno()):
        ConnectionPool.check_connection(connection)


def _spoken(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


@contextmanager
def _span(query: Any, database: str) -> Iterator[None]:
    if not trace.get_current_span().is_recording():
        yield
        return
    text = query.as_string(None) if isinstance(query, Composable) else str(query)
    text = " ".join(text.split())
    name = f"{text.split(' ', 1)[0].upper()} {database}"
    attributes = {"db.system.name": "postgresql", "db.namespace": database, "db.query.text": text[:1000]}
    with _tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
        yield
