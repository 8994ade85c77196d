"""Cursors that trace each statement and cancel it at the deadline.

Invariant: a span holds the text of a statement, never its parameters, and an error never holds the row. Statements
outside a recorded trace create no span. The timeout is sent together with the first statement of a transaction, so it
costs no round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from psycopg import AsyncConnection, AsyncCursor, Error
from psycopg.sql import SQL, Composable, Composed

from chassis.deadline import remaining
from chassis.telemetry.traces import tracer

Row = TypeVar("Row")

_tracer = tracer()
_with_timeout: WeakSet[AsyncConnection[Any]] = WeakSet()
_SET_TIMEOUT = SQL("SET LOCAL statement_timeout = {}")
_LONGEST_TEXT = 1000


class TracedAsyncCursor(AsyncCursor[Row]):
    """psycopg's cursor with a client span and the deadline's timeout around `execute`, for use in a transaction."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> TracedAsyncCursor[Row]:
        """See psycopg."""
        with traced([query], self.connection.info.dbname):
            set_timeout = _timeout_statement(self.connection)
            if set_timeout is None:
                await super().execute(query, params, **options)
                return self
            async with self.connection.pipeline():
                await AsyncCursor(self.connection).execute(set_timeout)
                await super().execute(query, params, **options)
        return self


def reset_timeout(connection: AsyncConnection[Any]) -> None:
    """Notes that the next statement starts a transaction, which has no timeout yet; call it after leaving the pool."""
    _with_timeout.discard(connection)


class traced:  # noqa: N801 - used like a function, as contextlib's context managers are
    """Wraps statements that are sent together in a client span, if the trace is recorded, and redacts their error."""

    __slots__ = ("_database", "_queries", "_span")

    def __init__(self, queries: Sequence[Any], database: str) -> None:
        self._queries = queries
        self._database = database
        self._span: AbstractContextManager[Span] | None = None

    def __enter__(self) -> None:
        if trace.get_current_span().is_recording():
            self._span = _statement_span(self._queries, self._database)
            self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            redact(error)
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)


def redact(error: BaseException) -> None:
    """Removes the row from the text of Postgres errors: they are logged and traced, and rows hold secrets."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, Error) and link.diag.message_primary:
            link.args = (link.diag.message_primary,)
        link = link.__cause__ or link.__context__


def _timeout_statement(connection: AsyncConnection[Any]) -> Composed | None:
    """Returns the statement that limits this transaction to the deadline; None if there is none or it was sent."""
    left = remaining()
    if left is None or connection in _with_timeout:
        return None
    _with_timeout.add(connection)
    return _SET_TIMEOUT.format(str(max(1, round(left * 1000))))


def _statement_span(queries: Sequence[Any], database: str) -> AbstractContextManager[Span]:
    texts = [query.as_string(None) if isinstance(query, Composable) else str(query) for query in queries]
    text = "; ".join(" ".join(each.split()) for each in texts)
    operation = text.split(" ", 1)[0].upper() if len(queries) == 1 else "BATCH"
    attributes: dict[str, str | int] = {
        "db.system.name": "postgresql",
        "db.namespace": database,
        "db.query.text": text[:_LONGEST_TEXT],
    }
    if len(queries) > 1:
        attributes["db.operation.batch.size"] = len(queries)
    return _tracer.start_as_current_span(f"{operation} {database}", kind=SpanKind.CLIENT, attributes=attributes)
