"""The pool of connections to one database, with the two cheap uses of a connection: `fetch` and `transact`.

Invariant: each borrowed connection is open, idle, and outside of a transaction. Callers wait for a permit, not in the
queue of psycopg's pool, so that a free connection is obtained without a task and without a timer.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.errors import PipelineAborted
from psycopg.pq import PipelineStatus
from psycopg.rows import AsyncRowFactory, DictRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from chassis.deadline import at_most, remaining
from chassis.errors import deadline_exceeded
from chassis.postgres.connectivity import Connectivity
from chassis.postgres.cursors import traced

Row = TypeVar("Row")
Connection = AsyncConnection[DictRow]
Statement = tuple[LiteralString, Sequence[object]]

_ACQUIRE_SECONDS = 3.0
_RECONNECT_SECONDS = 2.0
# A free connection is handed over immediately; only another task that returns one at the same moment delays it.
_HAND_OVER_SECONDS = 0.1
_BEGIN: Statement = ("BEGIN", ())
_COMMIT: Statement = ("COMMIT", ())


class Pool(AsyncConnectionPool[Connection]):
    """A pool of psycopg whose borrowers fail as soon as the server refuses connections."""

    def __init__(self, connectivity: Connectivity, max_size: int, **options: Any) -> None:
        super().__init__(
            connection_class=connectivity.connection_class(),
            min_size=1,
            max_size=max_size,
            open=False,
            timeout=_ACQUIRE_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            **options,
        )
        self._connectivity = connectivity
        self._permits = asyncio.Semaphore(max_size)

    async def grow(self, connections: int) -> None:
        """Raises the number of connections that the pool may open."""
        await self.resize(self.min_size, self.max_size + connections)
        for _ in range(connections):
            self._permits.release()

    @asynccontextmanager
    async def borrowed(self, *, autocommit: bool) -> AsyncIterator[Connection]:
        """Lends a connection for the block; a transaction that the block leaves open is rolled back.

        Raises psycopg.OperationalError: immediately if the server refuses connections, PoolTimeout if all connections
        are in use for three seconds. Raises RpcError(DEADLINE_EXCEEDED) if they are in use until the deadline.
        """
        if remaining() == 0:
            raise deadline_exceeded()
        await self._take_permit()
        try:
            connection = await self._take_open()
            try:
                if connection.autocommit is not autocommit:
                    await connection.set_autocommit(autocommit)
                yield connection
            finally:
                if connection.pgconn.pipeline_status != PipelineStatus.OFF:
                    # Cancelled while it entered the pipeline, which psycopg does not leave then.
                    await connection.close()
                await self.putconn(connection)
        finally:
            self._permits.release()

    async def fetch(self, query: LiteralString, params: Any = (), *, row_factory: AsyncRowFactory[Row]) -> list[Row]:
        """Returns the rows of one statement, which is a transaction of its own, in one round trip.

        Cancels it in Postgres at the deadline and raises RpcError(DEADLINE_EXCEEDED).
        """
        try:
            async with self.borrowed(autocommit=True) as connection, asyncio.timeout(remaining()):
                cursor = AsyncCursor(connection, row_factory=row_factory)
                with traced([query], self.name):
                    await cursor.execute(query, params, prepare=True, binary=True)
                return await cursor.fetchall()
        except TimeoutError:
            raise deadline_exceeded() from None

    async def transact(self, statements: Sequence[Statement]) -> None:
        """Executes statements as one transaction in one round trip, without their results.

        If it is cancelled before it has sent all of them, Postgres has no COMMIT and the transaction is rolled back.
        Raises the error of the first statement that fails. Cancels at the deadline as `fetch` does; the connection
        returns to the pool when Postgres has ended the transaction.
        """
        try:
            async with self.borrowed(autocommit=True) as connection, asyncio.timeout(remaining()):
                with traced([query for query, _ in statements], self.name):
                    await _send_together(connection, statements)
        except TimeoutError:
            raise deadline_exceeded() from None

    async def _take_permit(self) -> None:
        seconds = at_most(_ACQUIRE_SECONDS)
        if seconds and not self._permits.locked():
            await self._permits.acquire()
            return
        try:
            async with asyncio.timeout(seconds):
                await self._permits.acquire()
        except TimeoutError:
            if seconds < _ACQUIRE_SECONDS:
                raise deadline_exceeded("the deadline passed before a connection was free") from None
            raise PoolTimeout(f"no connection was free for {seconds:.0f} s") from None

    async def _take_open(self) -> Connection:
        """Returns a connection that the server has not closed.

        An idle Postgres connection becomes readable only when the server has closed it, so poll() is enough and no
        query is sent. A query to a dead server would also swallow the cancellation of its caller.
        """
        while True:
            connection = await self._take()
            if not connection.closed and not _readable(connection.fileno()):
                return connection
            await connection.close()
            await self.putconn(connection)

    async def _take(self) -> Connection:
        if self.get_stats()["pool_available"]:
            with suppress(PoolTimeout):
                return await self.getconn(_HAND_OVER_SECONDS)
        self._connectivity.check()
        getting = asyncio.create_task(self.getconn(at_most(_ACQUIRE_SECONDS)))
        return await self._connectivity.acquire(getting, self.putconn)


async def _send_together(connection: Connection, statements: Sequence[Statement]) -> None:
    """Executes statements between BEGIN and COMMIT in a pipeline.

    Without them Postgres would commit what it has at the end of the pipeline, which psycopg also sends after a
    cancellation.
    """
    try:
        async with connection.pipeline():
            for query, params in (_BEGIN, *statements, _COMMIT):
                await AsyncCursor(connection).execute(query, params, prepare=True)
    except PipelineAborted as error:
        # The statements after the one that failed end with this; psycopg may report the last error.
        failure: BaseException = error
    else:
        return
    while isinstance(failure, PipelineAborted) and failure.__context__:  # fragile: psycopg-pipeline-error
        failure = failure.__context__
    raise failure


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
