"""Cursors that trace each statement and cancel it at the deadline; also a check of idle connections.

Invariant: a span holds the text of a statement, never its parameters, and an error never holds the row. Statements
outside a trace create no span. The timeout is sent together with the first statement of a transaction, so it costs no
round trip.
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

_CLOSED = "the server has closed the connection"
_tracer = tracer()
_with_timeout: WeakSet[AsyncConnection[Any] | Connection[Any]] = WeakSet()
_SET_IN_TRANSACTION = SQL("SET LOCAL statement_timeout = {}")
# In autocommit mode the pipelined statements form one transaction, but not the block that SET LOCAL needs.
_SET_IN_AUTOCOMMIT = SQL("SELECT set_config('statement_timeout', {}, true)")


class TracedAsyncCursor(AsyncCursor[Row]):
    """psycopg's cursor with a client span and the deadline's timeout around `execute`."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> TracedAsyncCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            set_timeout = _timeout_statement(self.connection)
            if set_timeout is None:
                await super().execute(query, params, **options)
                return self
            async with self.connection.pipeline():
                await AsyncCursor(self.connection).execute(set_timeout)
                await super().execute(query, params, **options)
        return self


class TracedCursor(Cursor[Row]):
    """The same for sync connections."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> TracedCursor[Row]:
        """See psycopg."""
        with _span(query, self.connection.info.dbname):
            set_timeout = _timeout_statement(self.connection)
            if set_timeout is None:
                super().execute(query, params, **options)
                return self
            with self.connection.pipeline():
                Cursor(self.connection).execute(set_timeout)
                super().execute(query, params, **options)
        return self


async def check_connection(connection: AsyncConnection[Any]) -> None:
    """Raises OperationalError if the server has closed an idle connection.

    An idle Postgres connection becomes readable only when the server has closed it, so poll() is enough and no query
    is sent. A query to a dead server would also swallow the cancellation of its caller.
    """
    if _readable(connection.fileno()):
        await connection.close()
        raise OperationalError(_CLOSED)


def check_connection_sync(connection: Connection[Any]) -> None:
    """Does the same for a sync connection."""
    if _readable(connection.fileno()):
        connection.close()
        raise OperationalError(_CLOSED)


def reset_timeout(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """Notes that the next statement starts a transaction, which has no timeout yet; call it after leaving the pool."""
    _with_timeout.discard(connection)


@contextmanager
def redacted() -> Iterator[None]:
    """Removes the row from the text of Postgres errors: they are logged and traced, and rows hold secrets."""
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, Error) and link.diag.message_primary:
                link.args = (link.diag.message_primary,)
            link = link.__cause__ or link.__context__
        raise


def _timeout_statement(connection: AsyncConnection[Any] | Connection[Any]) -> Composed | None:
    """Returns the statement that limits this transaction to the deadline; None if there is none or it was sent."""
    left = remaining()
    autocommit = connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE
    if left is None or (connection in _with_timeout and not autocommit):
        return None
    if not autocommit:
        _with_timeout.add(connection)
    milliseconds = str(max(1, round(left * 1000)))
    return (_SET_IN_AUTOCOMMIT if autocommit else _SET_IN_TRANSACTION).format(milliseconds)


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


@contextmanager
def _span(query: Any, database: str) -> Iterator[None]:
    if not trace.get_current_span().is_recording():
        with redacted():
            yield
        return
    text = query.as_string(None) if isinstance(query, Composable) else str(query)
    text = " ".join(text.split())
    name = f"{text.split(' ', 1)[0].upper()} {database}"
    attributes = {"db.system.name": "postgresql", "db.namespace": database, "db.query.text": text[:1000]}
    with _tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes), redacted():
        yield
