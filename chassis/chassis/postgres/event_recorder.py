"""The eventsourcing library's Postgres recorder, on a pool with credentials from Vault and without its retries.

Invariant: each method is one attempt. The library retries a lost connection up to ten times without regard for the
deadline, so connection errors are raised here as ConnectionLost, which it does not retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import psycopg
from eventsourcing.persistence import InterfaceError, OperationalError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.rows import DictRow
from psycopg_pool import ConnectionPool, PoolTimeout

from chassis.deadline import at_most
from chassis.errors import ConfigurationError
from chassis.events.port import WriteRows
from chassis.events.record import RecordedEvent, from_state, to_state
from chassis.postgres.connectivity import Connectivity
from chassis.postgres.cursors import TracedCursor, check_connection_sync, redacted, reset_timeout
from chassis.postgres.database import (
    ACQUIRE_SECONDS,
    IDLE_IN_TRANSACTION,
    IDLE_IN_TRANSACTION_SECONDS,
    RECONNECT_SECONDS,
    Database,
)

TABLE = "events"  # fragile: eventsourcing-tables
_LOCK_SECONDS = 2
_CONNECTIVITY_CHECK_SECONDS = 0.2


class ConnectionLost(Exception):  # noqa: N818 - names a state, as psycopg's OperationalError does
    """The connection was lost or none could be obtained; the cause is psycopg's error."""


class Pool(ConnectionPool[Connection[DictRow]]):
    """A pool that stops waiting at the deadline, and as soon as the server refuses connections."""

    def __init__(self, connectivity: Connectivity, **options: Any) -> None:
        self._connectivity = connectivity
        super().__init__(**options)

    def getconn(self, timeout: float | None = None) -> Connection[DictRow]:
        """See ConnectionPool."""
        ends_at = time.monotonic() + at_most(self.timeout if timeout is None else timeout)
        while True:
            if not self.get_stats()["pool_available"]:
                self._connectivity.check()
            left = ends_at - time.monotonic()
            try:
                connection = super().getconn(max(0.001, min(left, _CONNECTIVITY_CHECK_SECONDS)))
            except PoolTimeout:
                if left <= _CONNECTIVITY_CHECK_SECONDS:
                    raise
                continue
            reset_timeout(connection)
            return connection


class Datastore(PostgresDatastore):
    """The library's datastore, whose pool reads the current credentials for each new connection."""

    def __init__(self, database: Database, max_size: int) -> None:
        super().__init__(
            database.name, "", 0, "", "", schema=database.name, lock_timeout=_LOCK_SECONDS,
            idle_in_transaction_session_timeout=float(IDLE_IN_TRANSACTION_SECONDS),
        )  # fmt: skip
        self.pool = Pool(  # fragile: eventsourcing-datastore
            database.connectivity,
            connection_class=database.connectivity.sync_connection_class(),
            kwargs=lambda: {**database.login().keywords(), "cursor_factory": TracedCursor},
            configure=self._configured(database),
            check=check_connection_sync,
            min_size=1,
            max_size=max_size,
            open=False,
            timeout=ACQUIRE_SECONDS,
            reconnect_timeout=RECONNECT_SECONDS,
            name=f"{database.name} events",
        )  # type: ignore[assignment]

    @contextmanager
    def get_connection(self) -> Iterator[Connection[DictRow]]:
        """See PostgresDatastore. Raises ConnectionLost in place of its connection errors."""
        try:
            # The library copies the text of psycopg's error into its own, so it is redacted inside.
            with super().get_connection() as connection, redacted():
                try:
                    yield connection
                except IDLE_IN_TRANSACTION as error:
                    raise psycopg.OperationalError("the server has closed the connection") from error
        except (OperationalError, InterfaceError) as error:  # fragile: eventsourcing-retry
            raise ConnectionLost(str(error)) from error.__cause__

    def _configured(self, database: Database) -> Callable[[Connection[DictRow]], None]:
        prepare = self.after_connect_func()  # fragile: eventsourcing-datastore

        def configure(connection: Connection[DictRow]) -> None:
            prepare(connection)
            database.check_user(connection)

        return configure


class EventRecorder(PostgresApplicationRecorder):
    """Inserts and selects events, blocking; `write_rows` adds rows in the transaction of an insert."""

    def __init__(self, datastore: PostgresDatastore, write_rows: WriteRows | None) -> None:
        super().__init__(datastore, events_table_name=TABLE)
        self._write_rows = write_rows
        if self.stored_event_type_name not in datastore.psycopg_python_types:  # fragile: eventsourcing-datastore
            raise ConfigurationError('the event store has no tables: run migrate("chassis") first')

    def insert(self, stored: Sequence[StoredEvent], events: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        """Inserts events and the rows of `write_rows` in one transaction."""
        self.insert_events(stored, events=events, extra=extra)

    def read(self, stream: UUID, after: int) -> list[RecordedEvent]:
        """Returns the events of a stream above a version."""
        return [_to_recorded(row) for row in self.select_events(stream, gt=after)]

    def since(self, position: int, limit: int) -> list[tuple[int, RecordedEvent]]:
        """Returns events after a position, in commit order: the table lock of an insert prevents gaps filled later."""
        rows = self.select_notifications(position, limit, inclusive_of_start=False)
        return [(row.id, _to_recorded(row)) for row in rows]

    def head(self) -> int:
        """Returns the last position."""
        return self.max_notification_id() or 0

    def has_stored(self, stored: Sequence[StoredEvent]) -> bool:
        """Returns whether exactly these events are in the table; each state contains a unique id."""
        if not stored:
            return False
        first, last = stored[0], stored[-1]
        rows = self.select_events(first.originator_id, gt=first.originator_version - 1, lte=last.originator_version)
        return [row.state for row in rows] == [event.state for event in stored]

    def _insert_events(  # fragile: eventsourcing-insert-hook
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> None:
        if kwargs["extra"] and self._write_rows:
            # The inner pipeline waits for its results; otherwise a violation is reported as "pipeline aborted".
            with curs.connection.pipeline():
                self._write_rows(curs, kwargs["events"], kwargs["extra"])
        super()._insert_events(curs, stored_events)  # fragile: eventsourcing-insert-hook


def to_stored(event: RecordedEvent) -> StoredEvent:
    """Returns an event in the library's form, with a new unique id."""
    return StoredEvent(event.stream, event.version, event.type, to_state(event))


def _to_recorded(row: StoredEvent) -> RecordedEvent:
    return from_state(cast(UUID, row.originator_id), row.originator_version, row.topic, row.state)
