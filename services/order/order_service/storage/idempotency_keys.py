"""Idempotency keys: the port, Postgres behind it, and the fake of the unit tests.

Invariant: a key is kept in the transaction of the order it placed, so neither is ever there without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from chassis.events.port import AlreadyRecorded
from chassis.events.record import RecordedEvent

if TYPE_CHECKING:
    from psycopg import Cursor

    from chassis.postgres.database import Database

_CONSTRAINT = "idempotency_keys_pkey"


@dataclass(frozen=True)
class Key:
    """What a user asked under a key, and the order that came of it."""

    user_id: UUID
    key: str
    request_hash: str
    order_id: UUID
    expires_at: datetime


class Keys(Protocol):
    """What the write side asks about keys; writing happens through `keep`, given to the event store."""

    async def find(self, user_id: UUID, key: str) -> Key | None:
        """The key as it was used first; None when it never was or has expired."""

    async def purge(self) -> int:
        """Forget what has expired; how many keys that were."""


def keep(cursor: Cursor[Any] | None, _: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
    """Write the key of an append beside its events; one in use breaks its primary key, and with it the append."""
    if cursor is None or "key" not in extra:
        return
    key: Key = extra["key"]
    # The cursor is in pipeline mode: nothing can be asked of a statement's result here.
    cursor.execute(_EXPIRE, (key.user_id, key.key))
    cursor.execute(_KEEP, (key.user_id, key.key, key.request_hash, key.order_id, key.expires_at))


_EXPIRE = "DELETE FROM idempotency_keys WHERE user_id = %s AND key = %s AND expires_at <= now()"
_KEEP = """INSERT INTO idempotency_keys (user_id, key, request_hash, order_id, expires_at)
           VALUES (%s, %s, %s, %s, %s)"""
_FIND = """SELECT user_id, key, request_hash, order_id, expires_at FROM idempotency_keys
           WHERE user_id = %s AND key = %s AND expires_at > now()"""
# In parts, so that a day's keys hold neither locks nor a connection for long; workers beside each other share the work.
_PURGE = """DELETE FROM idempotency_keys WHERE (user_id, key) IN (
                SELECT user_id, key FROM idempotency_keys WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED)"""
_PURGED_AT_ONCE = 1000


class PostgresKeys:
    """Keys in their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, user_id: UUID, key: str) -> Key | None:
        """See Keys."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(_FIND, (user_id, key))).fetchone()
        return None if row is None else Key(**row)

    async def purge(self) -> int:
        """See Keys."""
        purged, part = 0, _PURGED_AT_ONCE
        while part == _PURGED_AT_ONCE:
            async with self._database.connection() as connection:
                part = (await connection.execute(_PURGE, (_PURGED_AT_ONCE,))).rowcount
            purged += part
        return purged


class MemoryKeys:
    """The keys of unit tests."""

    def __init__(self) -> None:
        self._keys: dict[tuple[UUID, str], Key] = {}

    def keep(self, _: object, __: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        """As `keep` does it in Postgres."""
        if "key" not in extra:
            return
        key: Key = extra["key"]
        if self._living(key.user_id, key.key):
            raise AlreadyRecorded(_CONSTRAINT)
        self._keys[key.user_id, key.key] = key

    async def find(self, user_id: UUID, key: str) -> Key | None:
        """See Keys."""
        return self._living(user_id, key)

    async def purge(self) -> int:
        """See Keys."""
        before = len(self._keys)
        self._keys = {name: key for name, key in self._keys.items() if self._living(*name)}
        return before - len(self._keys)

    def _living(self, user_id: UUID, key: str) -> Key | None:
        known = self._keys.get((user_id, key))
        return known if known and known.expires_at > datetime.now(UTC) else None
