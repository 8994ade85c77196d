"""The event store on Postgres: the eventsourcing library's recorder on a pool that follows the lease.

Invariant: an append is one transaction; when its answer is lost, the rows that are stored decide whether it happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import IntegrityError, InterfaceError, OperationalError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.rows import DictRow
from psycopg_pool import ConnectionPool, PoolTimeout

from chassis.backoff import backoff
from chassis.deadline import remaining, within
from chassis.errors import ConfigurationError, RpcError, deadline_exceeded
from chassis.events.port import AlreadyRecorded, VersionConflict, Within, check_versions
from chassis.events.record import RecordedEvent, from_state, to_state
from chassis.postgres.connectivity import Reach
from chassis.postgres.cursors import TracedCursor, alive_sync, discreet, unlimited
from chassis.postgres.database import IDLE_IN_TRANSACTION_SECONDS, IDLE_SECONDS, SAT_THERE, Database, away
from chassis.postgres.notifications import Listener
from chassis.telemetry.traces import tracer

log = structlog.get_logger(__name__)

T = TypeVar("T")

TABLE = "events"
_POLL_SECONDS = 1.0
_ATTEMPTS = 3
_LOCK_SECONDS = 2
_LOOK_SECONDS = 0.2
_LOST = (OperationalError, InterfaceError)
_tracer = tracer()


class EventStore:
    """See chassis.events.port.EventLog. Made by `open`, closed with its database."""

    def __init__(self, database: Database, within: Within | None, max_size: int) -> None:
        self._database = database
        self._within = within
        self._threads = ThreadPoolExecutor(max_size, thread_name_prefix="events")
        # Appends wait for each other; a thread and a connection are always left to those who only read.
        self._appending = asyncio.Semaphore(max_size - 1)
        self._datastore = LeasedDatastore(database, max_size)
        self._listener = Listener(database, TABLE)
        self._recorder: Recorder

    @classmethod
    async def open(cls, database: Database, within: Within | None = None, max_size: int = 3) -> EventStore:
        """The store in the database's schema, whose tables `database.migrate("chassis")` has made."""
        store = cls(database, within, max_size)
        database.on_close(store.close)
        database.on_fresh_login(lambda: store._threads.submit(store._datastore.pool.drain))
        for delay in backoff(0.2, 2.0):
            try:
                store._recorder = await store._run(lambda: Recorder(store._datastore, within))
                break
            except RpcError as error:
                log.warning("database is away, the event store waits", error=str(error))
            await asyncio.sleep(delay)
        return store

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """See EventLog."""
        check_versions(stream, expected_version, events)
        stored = [_store(event) for event in events]
        with _tracer.start_as_current_span("append events", attributes={"event.types": [e.type for e in events]}):
            await self._turn()
            try:
                await self._run(lambda: self._recorder.insert_once(stored, events, extra), _ATTEMPTS)
            except IntegrityError as error:
                if not await self._run(lambda: self._recorder.holds(stored), _ATTEMPTS):
                    raise _refusal(stream, expected_version, error) from error
            finally:
                self._appending.release()

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """See EventLog."""
        return await self._run(lambda: self._recorder.read_once(stream, after), _ATTEMPTS)

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """See EventLog."""
        return await self._run(lambda: self._recorder.since_once(position, limit), _ATTEMPTS)

    async def head(self) -> int:
        """See EventLog."""
        return await self._run(self._recorder.head_once, _ATTEMPTS)

    async def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """See EventLog. A database that is away is waited for."""
        self._listener.start()
        while True:
            bell = self._listener.bell()
            try:
                batch = await self.since(position)
            except RpcError as error:
                log.warning("events cannot be read, trying again", error=str(error))
                batch = []
            for found in batch:
                position = found[0]
                yield found
            if not batch:
                await bell.wait(_POLL_SECONDS)

    async def close(self) -> None:
        """Close the connections; an append that is under way may still finish."""
        await asyncio.to_thread(self._datastore.pool.close, 1.0)
        self._threads.shutdown(wait=False)

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(remaining()):
                await self._appending.acquire()
        except TimeoutError:
            raise deadline_exceeded("the deadline passed while other appends were under way") from None

    async def _run(self, work: Callable[[], T], attempts: int = 1) -> T:
        """`work()` in a thread of the store; a lost connection is tried again while there is time."""
        loop = asyncio.get_running_loop()
        for delay, attempt in zip(backoff(0.1, 0.5), range(1, attempts + 1), strict=False):
            try:
                return await loop.run_in_executor(self._threads, copy_context().run, _in_time, work)
            except _LOST as error:
                if attempt == attempts or (remaining() or delay) < delay:
                    raise away(error) from error
            await asyncio.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")


class _Pool(ConnectionPool[Connection[DictRow]]):
    reach: Reach

    def getconn(self, timeout: float | None = None) -> Connection[DictRow]:
        ends_at = time.monotonic() + within(self.timeout if timeout is None else timeout)
        while True:
            if not self.get_stats()["pool_available"]:
                self.reach.check()
            left = ends_at - time.monotonic()
            try:
                connection = super().getconn(max(0.001, min(left, _LOOK_SECONDS)))
            except PoolTimeout:
                if left <= _LOOK_SECONDS:
                    raise
                continue
            unlimited(connection)
            return connection


class LeasedDatastore(PostgresDatastore):
    """The library's datastore with a pool that asks for user and password at each new connection."""

    def __init__(self, database: Database, max_size: int) -> None:
        super().__init__(
            database.name, "", 0, "", "", schema=database.name, lock_timeout=_LOCK_SECONDS,
            idle_in_transaction_session_timeout=float(IDLE_IN_TRANSACTION_SECONDS),
        )  # fmt: skip
        self.pool = _Pool(
            connection_class=database.reach.noticed_sync(),
            kwargs=lambda: {**database.login().parameters(), "cursor_factory": TracedCursor},
            configure=self._configured(database),
            check=alive_sync,
            min_size=1,
            max_size=max_size,
            max_idle=IDLE_SECONDS,
            open=False,
            timeout=3.0,
            reconnect_timeout=2.0,
            num_workers=1,
            name=f"{database.name} events",
        )  # type: ignore[assignment]
        self.pool.reach = database.reach  # type: ignore[attr-defined]

    @contextmanager
    def get_connection(self) -> Iterator[Connection[DictRow]]:
        """See PostgresDatastore, which repeats the words of an error in one of its own."""
        with super().get_connection() as connection, discreet():
            try:
                yield connection
            except SAT_THERE as error:
                raise psycopg.OperationalError("the server has ended the connection") from error

    def _configured(self, database: Database) -> Callable[[Connection[DictRow]], None]:
        prepare = self.after_connect_func()

        def configure(connection: Connection[DictRow]) -> None:
            prepare(connection)
            database.is_current(connection)

        return configure


class Recorder(PostgresApplicationRecorder):
    """The library's recorder without its retries, which know no deadline: up to ten waits of the pool in a row."""

    def __init__(self, datastore: PostgresDatastore, within: Within | None) -> None:
        super().__init__(datastore, events_table_name=TABLE)
        self._within = within
        if self.stored_event_type_name not in datastore.psycopg_python_types:
            raise ConfigurationError('the event store has no tables: run migrate("chassis") first')

    def insert_once(
        self, stored: Sequence[StoredEvent], events: Sequence[RecordedEvent], extra: Mapping[str, Any]
    ) -> None:
        """Insert events, and what `within` adds, in one transaction."""
        _once(PostgresApplicationRecorder.insert_events)(self, stored, events=events, extra=extra)

    def read_once(self, stream: UUID, after: int) -> list[RecordedEvent]:
        """The events of a stream above a version."""
        rows = _once(PostgresApplicationRecorder.select_events)(self, stream, gt=after)
        return [_record(row) for row in rows]

    def since_once(self, position: int, limit: int) -> list[tuple[int, RecordedEvent]]:
        """Events after a position, in commit order: the table lock of an insert keeps positions without late gaps."""
        rows = _once(PostgresApplicationRecorder.select_notifications)(self, position, limit, inclusive_of_start=False)
        return [(row.id, _record(row)) for row in rows]

    def head_once(self) -> int:
        """The last position."""
        return _once(PostgresApplicationRecorder.max_notification_id)(self) or 0

    def holds(self, stored: Sequence[StoredEvent]) -> bool:
        """Whether exactly these events are in the table: each state carries an id that is never made twice."""
        if not stored:
            return False
        first, last = stored[0], stored[-1]
        rows = _once(PostgresApplicationRecorder.select_events)(
            self, first.originator_id, gt=first.originator_version - 1, lte=last.originator_version
        )
        return [row.state for row in rows] == [event.state for event in stored]

    def _insert_events(self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        if kwargs["extra"] and self._within:
            # The inner pipeline waits for its answers: a refused row would otherwise come out as "pipeline aborted".
            with curs.connection.pipeline():
                self._within(curs, kwargs["events"], kwargs["extra"])
        super()._insert_events(curs, stored_events)


def _once(method: Any) -> Callable[..., Any]:
    return method.__wrapped__  # type: ignore[no-any-return]


def _in_time(work: Callable[[], T]) -> T:
    if remaining() == 0:
        raise deadline_exceeded("the deadline passed before the event store had a free connection")
    return work()


def _store(event: RecordedEvent) -> StoredEvent:
    return StoredEvent(event.stream, event.version, event.type, to_state(event))


def _record(row: StoredEvent) -> RecordedEvent:
    return from_state(cast(UUID, row.originator_id), row.originator_version, row.topic, row.state)


def _refusal(stream: UUID, expected_version: int, error: IntegrityError) -> Exception:
    cause = error.__cause__
    if not isinstance(cause, psycopg.errors.UniqueViolation):
        return error
    constraint = cause.diag.constraint_name or ""
    if constraint.startswith(f"{TABLE}_"):
        return VersionConflict(stream, expected_version)
    return AlreadyRecorded(constraint)
