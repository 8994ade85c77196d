"""Cursors that record each statement as a span and end it at the deadline, and a free check of idle connections.

Invariant: a span holds the text of a statement, never its parameters, and an error no row; without a trace around it
there is no span. The time limit of a transaction goes out with its first statement, so that it costs no round trip.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Error, OperationalError
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Composable, Composed

from chassis.deadline import remaining
from chassis.telemetry.traces import tracer

Row = TypeVar("Row")

_GOODBYE = "the server has ended the connection"
_tracer = tracer()
_limited: WeakSet[AsyncConnection[Any] | Connection[Any]] = WeakSet()
_TOGETHER = SQL("SET LOCAL statement_timeout = {}")
# A statement in autocommit mode is one transaction with what is sent along, but no block, for which SET LOCAL asks.
_ALONE = SQL("SELECT set_config('statement_timeout', {}, true)")


class TracedAsyncCursor(AsyncCursor[Row]):
    """psycopg's cursor with a client span around `execute`."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> TracedAsyncCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            limit = _limit(self.connection)
            if limit is None:
                await super().execute(query, params, **options)
                return self
            async with self.connection.pipeline():
                await AsyncCursor(self.connection).execute(limit)
                await super().execute(query, params, **options)
        return self


class TracedCursor(Cursor[Row]):
    """The same for sync connections."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> TracedCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            limit = _limit(self.connection)
            if limit is None:
                super().execute(query, params, **options)
                return self
            with self.connection.pipeline():
                Cursor(self.connection).execute(limit)
                super().execute(query, params, **options)
        return self


async def alive(connection: AsyncConnection[Any]) -> None:
    """Raise when an idle connection is lost. The server speaks unasked only to say goodbye, so silence is health.

    Nothing is asked of it, either: a question to a dead server would swallow the cancellation of who asks.
    """
    if _spoken(connection.fileno()):
        await connection.close()
        raise OperationalError(_GOODBYE)


def alive_sync(connection: Connection[Any]) -> None:
    """The same for sync connections."""
    if _spoken(connection.fileno()):
        connection.close()
        raise OperationalError(_GOODBYE)


def unlimited(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """A transaction begins with the next statement on this connection, which just left its pool."""
    _limited.discard(connection)


def _limit(connection: AsyncConnection[Any] | Connection[Any]) -> Composed | None:
    """What ends the statements of this transaction at the deadline; None without one, or when it was said before."""
    left = remaining()
    alone = connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE
    if left is None or (connection in _limited and not alone):
        return None
    if not alone:
        _limited.add(connection)
    return (_ALONE if alone else _TOGETHER).format(str(max(1, round(left * 1000))))


def _spoken(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


@contextmanager
def discreet() -> Iterator[None]:
    """Leave the row out of what an error of Postgres says, which ends in logs and traces: there are secrets in rows."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, Error) and found.diag.message_primary:
                found.args = (found.diag.message_primary,)
            found = found.__cause__ or found.__context__
        raise


@contextmanager
def _span(query: Any, database: str) -> Iterator[None]:
    if not trace.get_current_span().is_recording():
        with discreet():
            yield
        return
    text = query.as_string(None) if isinstance(query, Composable) else str(query)
    text = " ".join(text.split())
    name = f"{text.split(' ', 1)[0].upper()} {database}"
    attributes = {"db.system.name": "postgresql", "db.namespace": database, "db.query.text": text[:1000]}
    with _tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes), discreet():
        yield
