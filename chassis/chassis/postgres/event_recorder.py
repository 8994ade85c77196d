"""The statements of the event store: inserts and selects of table `events`, each of them one round trip.

Invariant: each method is one attempt, and raises the errors of psycopg. Positions are assigned in the order of the
commits, because an insert holds a lock on the table from before its first position until it is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import tuple_row

from chassis.events.port import WriteRows
from chassis.events.record import RecordedEvent, from_state, to_state
from chassis.postgres.pool import Pool, Statement

TABLE = "events"
"""The name of the table; its constraints begin with it, and each append sends NOTIFY on a channel of this name."""
Row = tuple[UUID, int, str, bytes]

_EXISTS: LiteralString = "SELECT to_regclass('events') IS NOT NULL"
# The process may be stopped between two statements; then all locks are released when the transaction lasted too long.
_LONGEST: LiteralString = "SET LOCAL transaction_timeout = '10s'"
_NOTIFY: LiteralString = "SELECT pg_notify('events', ''), set_config('lock_timeout', '2s', true)"
# Readers go on. Without this lock a later position could be committed first, and a reader would skip the earlier one.
# It comes before all rows: two transactions that each hold a row and wait for one of the other would deadlock.
_LOCK: LiteralString = "LOCK TABLE events IN EXCLUSIVE MODE"
_INSERT: LiteralString = "INSERT INTO events (originator_id, originator_version, topic, state) VALUES (%s, %s, %s, %s)"
_READ: LiteralString = """
    SELECT originator_version, topic, state FROM events
    WHERE originator_id = %s AND originator_version > %s ORDER BY originator_version"""
_SINCE: LiteralString = """
    SELECT notification_id, originator_id, originator_version, topic, state FROM events
    WHERE notification_id > %s ORDER BY notification_id LIMIT %s"""
_HEAD: LiteralString = "SELECT max(notification_id) FROM events"
_STORED: LiteralString = """
    SELECT state FROM events
    WHERE originator_id = %s AND originator_version BETWEEN %s AND %s ORDER BY originator_version"""


@dataclass(frozen=True, slots=True)
class Append:
    """Events, their rows of the table, and what `write_rows` gets in the same transaction."""

    rows: Sequence[Row]
    events: Sequence[RecordedEvent]
    extra: Mapping[str, Any]


class EventRecorder:
    """Inserts and selects events; `write_rows` adds rows in the transaction of an insert."""

    def __init__(self, pool: Pool, write_rows: WriteRows | None) -> None:
        self._pool = pool
        self._write_rows = write_rows

    async def has_table(self) -> bool:
        """Returns whether the table exists."""
        return bool((await self._pool.fetch(_EXISTS, row_factory=tuple_row))[0][0])

    async def insert(self, appends: Sequence[Append]) -> None:
        """Inserts the rows of appends, and those of `write_rows`, in one transaction: all of them or none."""
        transaction = _Statements()
        transaction.execute(_LONGEST, ())
        if any(append.rows for append in appends):
            transaction.execute(_NOTIFY, ())
            transaction.execute(_LOCK, ())
        for append in appends:
            if append.extra and self._write_rows:
                self._write_rows(transaction, append.events, append.extra)
            for row in append.rows:
                transaction.execute(_INSERT, row)
        await self._pool.transact(transaction)

    async def read(self, stream: UUID, after: int) -> list[RecordedEvent]:
        """Returns the events of a stream above a version."""
        rows = await self._pool.fetch(_READ, (stream, after), row_factory=tuple_row)
        return [from_state(stream, version, kind, state) for version, kind, state in rows]

    async def since(self, position: int, limit: int) -> list[tuple[int, RecordedEvent]]:
        """Returns events after a position, in commit order."""
        rows = await self._pool.fetch(_SINCE, (position, limit), row_factory=tuple_row)
        return [(at, from_state(stream, version, kind, state)) for at, stream, version, kind, state in rows]

    async def head(self) -> int:
        """Returns the last position."""
        return (await self._pool.fetch(_HEAD, row_factory=tuple_row))[0][0] or 0

    async def has_stored(self, rows: Sequence[Row]) -> bool:
        """Returns whether exactly these rows are in the table; each state contains a unique id."""
        if not rows:
            return False
        (stream, first, _, _), (_, last, _, _) = rows[0], rows[-1]
        found = await self._pool.fetch(_STORED, (stream, first, last), row_factory=tuple_row)
        return [state for (state,) in found] == [state for _, _, _, state in rows]


def to_append(events: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> Append:
    """Returns an append of events, whose rows each contain a new unique id."""
    rows = [(event.stream, event.version, event.type, to_state(event)) for event in events]
    return Append(rows, events, extra)


class _Statements(list[Statement]):
    """See chassis.events.port.Transaction."""

    def execute(self, query: LiteralString, params: Sequence[object]) -> None:
        self.append((query, params))
