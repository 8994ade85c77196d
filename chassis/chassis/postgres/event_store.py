"""The event store on Postgres: appends, reads and subscriptions, repeated after a lost connection.

Invariant: an append is one transaction, or a part of one that it shares with others (group commit). If its result is
lost with the connection, the stored rows decide whether it was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import structlog
from opentelemetry import trace

from chassis.backoff import backoff
from chassis.batching import Batcher
from chassis.deadline import at_most, remaining
from chassis.errors import ConfigurationError, RpcError, deadline_exceeded
from chassis.events.port import AlreadyRecorded, VersionConflict, WriteRows, check_versions
from chassis.events.record import RecordedEvent
from chassis.postgres.database import CONNECTION_LOST, UNAVAILABLE_BACKOFF_SECONDS, Database, to_rpc_error
from chassis.postgres.event_recorder import TABLE, Append, EventRecorder, to_append
from chassis.postgres.notifications import Notifications
from chassis.telemetry.traces import start_span

log = structlog.get_logger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 1.0
_ATTEMPTS = 3
_RETRY_SECONDS = (0.1, 0.5)
_TOGETHER_AT_MOST = 16
_TOGETHER_SECONDS = 5.0


class EventStore:
    """See chassis.events.port.EventLog. Created by `open`, closed with its database."""

    def __init__(self, database: Database, write_rows: WriteRows | None, appends: int) -> None:
        # Appends wait for each other on the table lock, so they use no more connections than the store has added. A
        # cancelled one keeps its permit until Postgres has ended its transaction.
        self._append_permits = asyncio.Semaphore(appends)
        self._recorder = EventRecorder(database.pool, write_rows)
        self._inserting = 0
        self._together: Batcher[Append, int] = Batcher(self._insert_together, _TOGETHER_AT_MOST, _TOGETHER_SECONDS)
        self.notifications = Notifications(database, TABLE)

    @classmethod
    async def open(cls, database: Database, write_rows: WriteRows | None = None, max_size: int = 3) -> EventStore:
        """Opens the store in the database's schema and adds `max_size` connections to its pool, for as many appends.

        Waits while the database is unavailable. `write_rows` adds rows in the transaction of each append. Raises
        ConfigurationError if the table of `database.migrate("chassis")` does not exist.
        """
        store = cls(database, write_rows, max_size)
        await database.pool.grow(max_size)
        for delay in backoff(*UNAVAILABLE_BACKOFF_SECONDS):
            try:
                await store._check_table()
                break
            except RpcError as error:
                log.warning("database unavailable, retrying to open the event store", error=str(error))
            await asyncio.sleep(delay)
        return store

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """See EventLog."""
        check_versions(stream, expected_version, events)
        append = to_append(events, extra)
        span = start_span("append events")
        if not span.is_recording():
            return await self._append(stream, expected_version, append)
        span.set_attribute("event.types", [event.type for event in events])
        with trace.use_span(span, end_on_exit=True):
            return await self._append(stream, expected_version, append)

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """See EventLog."""
        return await self._repeated(lambda: self._recorder.read(stream, after))

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """See EventLog."""
        return await self._repeated(lambda: self._recorder.since(position, limit))

    async def head(self) -> int:
        """See EventLog."""
        return await self._repeated(self._recorder.head)

    async def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """See EventLog. Waits while the database is unavailable."""
        self.notifications.start()
        while True:
            wakeup = self.notifications.wakeup()
            try:
                batch = await self.since(position)
            except RpcError as error:
                log.warning("events cannot be read, retrying", error=str(error))
                batch = []
            for recorded in batch:
                position = recorded[0]
                yield recorded
            if not batch:
                await wakeup.wait(_POLL_SECONDS)

    async def _check_table(self) -> None:
        if not await self._repeated(self._recorder.has_table, attempts=1):
            raise ConfigurationError('the event store has no tables: run migrate("chassis") first')

    async def _append(self, stream: UUID, expected_version: int, append: Append) -> None:
        """Inserts an append immediately if no other one is in progress, otherwise together with those that wait too."""
        if self._inserting and await self._joined(append):
            return
        try:
            await self._repeated(lambda: self._insert([append]))
        except psycopg.IntegrityError as error:
            if not await self._repeated(lambda: self._recorder.has_stored(append.rows)):
                raise _conflict(stream, expected_version, error) from error

    async def _joined(self, append: Append) -> bool:
        """Returns whether the append was committed together with others; if not, it has to be repeated by itself."""
        try:
            async with asyncio.timeout(remaining()):
                together = await self._together.submit(append)
        except TimeoutError:
            raise deadline_exceeded("the deadline passed while other appends were in progress") from None
        except RpcError:  # the transaction did not end in time, or was ended from within
            return False
        trace.get_current_span().set_attribute("append.together", together)
        return bool(together)

    async def _insert_together(self, appends: Sequence[Append]) -> list[int]:
        """Returns for each append with how many it was committed, 0 if it has to be repeated by itself.

        One that conflicts takes few others with it: the halves are tried apart.
        """
        number = len(appends)
        try:
            await self._insert(appends)
        except psycopg.IntegrityError:
            if number == 1:
                return [0]
            halves = (appends[: number // 2], appends[number // 2 :])
            return [done for half in halves for done in await self._insert_together(half)]
        except Exception as error:
            log.info("a shared transaction failed, its appends are repeated", error=type(error).__name__)
            return [0] * number
        return [number] * number

    async def _insert(self, appends: Sequence[Append]) -> None:
        self._inserting += 1
        try:
            await _acquire(self._append_permits)
            try:
                await self._recorder.insert(appends)
            finally:
                self._append_permits.release()
        finally:
            self._inserting -= 1

    async def _repeated(self, work: Callable[[], Awaitable[T]], attempts: int = _ATTEMPTS) -> T:
        """Returns the result of `work()`; repeats it after a lost connection while there is time."""
        for delay, attempt in zip(backoff(*_RETRY_SECONDS), range(1, attempts + 1), strict=False):
            try:
                return await work()
            except CONNECTION_LOST as error:
                if attempt == attempts or at_most(delay) < delay:
                    raise to_rpc_error(error) from error
            await asyncio.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")


async def _acquire(permits: asyncio.Semaphore) -> None:
    try:
        async with asyncio.timeout(remaining()):
            await permits.acquire()
    except TimeoutError:
        raise deadline_exceeded("the deadline passed while other appends were in progress") from None


def _conflict(stream: UUID, expected_version: int, error: psycopg.IntegrityError) -> Exception:
    if not isinstance(error, psycopg.errors.UniqueViolation):
        return error
    constraint = error.diag.constraint_name or ""
    if constraint.startswith(f"{TABLE}_"):
        return VersionConflict(stream, expected_version)
    return AlreadyRecorded(constraint)
