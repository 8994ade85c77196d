"""The event store on Postgres, for asyncio: appends, reads and subscriptions on the eventsourcing library's tables.

Invariant: an append is one transaction. If its result is lost with the connection, the stored rows decide whether it
was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import IntegrityError

from chassis.backoff import backoff
from chassis.deadline import at_most, remaining
from chassis.errors import RpcError, deadline_exceeded
from chassis.events.port import AlreadyRecorded, VersionConflict, WriteRows, check_versions
from chassis.events.record import RecordedEvent
from chassis.postgres.database import UNAVAILABLE_BACKOFF_SECONDS, Database, to_rpc_error
from chassis.postgres.event_recorder import TABLE, ConnectionLost, Datastore, EventRecorder, to_stored
from chassis.postgres.notifications import Notifications
from chassis.telemetry.traces import tracer

log = structlog.get_logger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 1.0
_ATTEMPTS = 3
_RETRY_SECONDS = (0.1, 0.5)
_CLOSE_SECONDS = 1.0
_tracer = tracer()


class EventStore:
    """See chassis.events.port.EventLog. Created by `open`, closed with its database."""

    def __init__(self, database: Database, max_size: int) -> None:
        self._threads = ThreadPoolExecutor(max_size, thread_name_prefix="events")
        # Appends wait for each other on the table lock, so one thread and one connection are reserved for reads.
        # A permit belongs to a thread: a cancelled append leaves its thread waiting.
        self._append_permits = asyncio.Semaphore(max_size - 1)
        self._datastore = Datastore(database, max_size)
        self._notifications = Notifications(database, TABLE)  # fragile: eventsourcing-channel
        self._recorder: EventRecorder
        database.on_close(self.close)
        database.on_credentials_replaced(lambda: self._threads.submit(self._datastore.pool.drain))

    @classmethod
    async def open(cls, database: Database, write_rows: WriteRows | None = None, max_size: int = 3) -> EventStore:
        """Opens the store in the database's schema; waits while the database is unavailable.

        `write_rows` adds rows in the transaction of each append. Raises ConfigurationError if the tables of
        `database.migrate("chassis")` do not exist.
        """
        store = cls(database, max_size)
        for delay in backoff(*UNAVAILABLE_BACKOFF_SECONDS):
            try:
                store._recorder = await store._run(lambda: EventRecorder(store._datastore, write_rows))
                break
            except RpcError as error:
                log.warning("database unavailable, retrying to open the event store", error=str(error))
            await asyncio.sleep(delay)
        return store

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """See EventLog."""
        check_versions(stream, expected_version, events)
        stored = [to_stored(event) for event in events]
        with _tracer.start_as_current_span("append events", attributes={"event.types": [e.type for e in events]}):
            try:
                await self._run(lambda: self._recorder.insert(stored, events, extra), _ATTEMPTS, self._append_permits)
            except IntegrityError as error:
                if not await self._run(lambda: self._recorder.has_stored(stored), _ATTEMPTS):
                    raise _conflict(stream, expected_version, error) from error

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """See EventLog."""
        return await self._run(lambda: self._recorder.read(stream, after), _ATTEMPTS)

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """See EventLog."""
        return await self._run(lambda: self._recorder.since(position, limit), _ATTEMPTS)

    async def head(self) -> int:
        """See EventLog."""
        return await self._run(self._recorder.head, _ATTEMPTS)

    async def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """See EventLog. Waits while the database is unavailable."""
        self._notifications.start()
        while True:
            wakeup = self._notifications.wakeup()
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

    async def close(self) -> None:
        """Closes the connections; an append in progress may still finish."""
        await asyncio.to_thread(self._datastore.pool.close, _CLOSE_SECONDS)
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], attempts: int = 1, permits: asyncio.Semaphore | None = None) -> T:
        """Runs `work()` in a thread of the store; retries it after a lost connection while there is time."""
        for delay, attempt in zip(backoff(*_RETRY_SECONDS), range(1, attempts + 1), strict=False):
            try:
                return await self._in_thread(work, permits)
            except ConnectionLost as error:
                if attempt == attempts or at_most(delay) < delay:
                    raise to_rpc_error(error) from error
            await asyncio.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _in_thread(self, work: Callable[[], T], permits: asyncio.Semaphore | None) -> T:
        """Runs `work()` in a thread. A permit is held until the thread is free, also if the caller is cancelled."""
        if permits is not None:
            await _acquire(permits)
        loop = asyncio.get_running_loop()
        running = self._threads.submit(copy_context().run, _before_deadline, work)
        if permits is not None:
            running.add_done_callback(lambda _: loop.call_soon_threadsafe(permits.release))
        return await asyncio.wrap_future(running)


async def _acquire(permits: asyncio.Semaphore) -> None:
    try:
        async with asyncio.timeout(remaining()):
            await permits.acquire()
    except TimeoutError:
        raise deadline_exceeded("the deadline passed while other appends were in progress") from None


def _before_deadline(work: Callable[[], T]) -> T:
    if remaining() == 0:
        raise deadline_exceeded("the deadline passed before a thread of the event store was free")
    return work()


def _conflict(stream: UUID, expected_version: int, error: IntegrityError) -> Exception:
    cause = error.__cause__
    if not isinstance(cause, psycopg.errors.UniqueViolation):
        return error
    constraint = cause.diag.constraint_name or ""
    if constraint.startswith(f"{TABLE}_"):
        return VersionConflict(stream, expected_version)
    return AlreadyRecorded(constraint)
