"""Stores idempotency keys: the port, its Postgres adapter, and its fake for unit tests.

Invariant: a key is inserted in the transaction of the order it placed, so neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString, Protocol
from uuid import UUID

from chassis.events.port import AlreadyRecorded, Transaction
from chassis.events.record import RecordedEvent

if TYPE_CHECKING:
    from chassis.postgres.database import Database

_CONSTRAINT = "idempotency_keys_pkey"


@dataclass(frozen=True)
class IdempotencyKey:
    """A key of a user, the hash of the request it was used for, and the order that was placed."""

    user_id: UUID
    key: str
    request_hash: str
    order_id: UUID
    expires_at: datetime


class IdempotencyKeys(Protocol):
    """Port of the write side. Keys are inserted by `insert_key`, which the event store calls."""

    async def find(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        """Returns the key as it was first used; None if it was never used or has expired."""

    async def delete_expired(self, user_id: UUID, key: str) -> None:
        """Deletes the key if it has expired, so that it can be used again."""

    async def purge(self) -> int:
        """Deletes all expired keys and returns their number."""


def insert_key(transaction: Transaction | None, _: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
    """Inserts the key of an append in its transaction; a key in use violates the primary key and fails the append."""
    if transaction is None or "key" not in extra:
        return
    key: IdempotencyKey = extra["key"]
    transaction.execute(_INSERT, (key.user_id, key.key, key.request_hash, key.order_id, key.expires_at))


_INSERT: LiteralString = """INSERT INTO idempotency_keys (user_id, key, request_hash, order_id, expires_at)
             VALUES (%s, %s, %s, %s, %s)"""
_FIND: LiteralString = """SELECT user_id, key, request_hash, order_id, expires_at FROM idempotency_keys
           WHERE user_id = %s AND key = %s AND expires_at > now()"""
_DELETE_EXPIRED = "DELETE FROM idempotency_keys WHERE user_id = %s AND key = %s AND expires_at <= now()"
# In batches, so that no lock and no connection is held for long; several workers can purge side by side.
_PURGE = """DELETE FROM idempotency_keys WHERE (user_id, key) IN (
                SELECT user_id, key FROM idempotency_keys WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED)"""
_PURGE_BATCH = 1000


class PostgresIdempotencyKeys:
    """Table `idempotency_keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        """See IdempotencyKeys."""
        rows = await self._database.fetch(_FIND, (user_id, key))
        return IdempotencyKey(**rows[0]) if rows else None

    async def delete_expired(self, user_id: UUID, key: str) -> None:
        """See IdempotencyKeys."""
        async with self._database.connection() as connection:
            await connection.execute(_DELETE_EXPIRED, (user_id, key))

    async def purge(self) -> int:
        """See IdempotencyKeys."""
        purged, part = 0, _PURGE_BATCH
        while part == _PURGE_BATCH:
            async with self._database.connection() as connection:
                part = (await connection.execute(_PURGE, (_PURGE_BATCH,))).rowcount
            purged += part
        return purged


class MemoryIdempotencyKeys:
    """Fake for unit tests."""

    def __init__(self) -> None:
        self._keys: dict[tuple[UUID, str], IdempotencyKey] = {}

    def insert_key(self, _: object, __: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        """Does what the function `insert_key` does in Postgres."""
        if "key" not in extra:
            return
        key: IdempotencyKey = extra["key"]
        if (key.user_id, key.key) in self._keys:
            raise AlreadyRecorded(_CONSTRAINT)
        self._keys[key.user_id, key.key] = key

    async def find(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        """See IdempotencyKeys."""
        return self._unexpired(user_id, key)

    async def delete_expired(self, user_id: UUID, key: str) -> None:
        """See IdempotencyKeys."""
        if self._unexpired(user_id, key) is None:
            self._keys.pop((user_id, key), None)

    async def purge(self) -> int:
        """See IdempotencyKeys."""
        before = len(self._keys)
        self._keys = {name: key for name, key in self._keys.items() if self._unexpired(*name)}
        return before - len(self._keys)

    def _unexpired(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        known = self._keys.get((user_id, key))
        return known if known and known.expires_at > datetime.now(UTC) else None
