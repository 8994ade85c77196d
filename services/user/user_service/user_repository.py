"""Stores users and their reservations: the port, its Postgres adapter and the fake of the unit tests.

Invariant: changes of one user's credit are serialized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import LiteralString, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import DictRow

from chassis.errors import unstorable_value
from chassis.postgres.database import Database
from user_service.domain import Credit, EmailTaken, Reservation, State, User, UserUnknown, email_key

Connection = AsyncConnection[DictRow]
Decide = Callable[[Credit, Reservation | None], Reservation]


@dataclass(frozen=True)
class Credentials:
    """The password hash of a user, with the currency of the user's credit."""

    user_id: UUID
    password_hash: str
    currency: str


class UserRepository(Protocol):
    """Stores users and reservations; raises RpcError(INVALID_ARGUMENT) for text with a NUL."""

    async def add(self, user: User, password_hash: str) -> None:
        """Stores a new user; raises EmailTaken."""

    async def find(self, user_id: UUID) -> User | None:
        """Returns the user with the current credit, or None."""

    async def credentials(self, email: str) -> Credentials | None:
        """Returns the credentials of the user with this email, in any case, or None."""

    async def replace_hash(self, user_id: UUID, old_hash: str, new_hash: str) -> None:
        """Stores another hash of the same password, unless `old_hash` was replaced meanwhile."""

    async def change_reservation(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """Stores the reservation that `decide` returns, in one transaction; raises UserUnknown."""


class PostgresUserRepository:
    """The repository in the tables of `migrations/`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user: User, password_hash: str) -> None:
        """See UserRepository."""
        key, credit = email_key(user.email), user.credit
        row = (user.id, user.email, key, user.name, password_hash, credit.currency, credit.limit)
        async with self._database.connection() as connection:
            try:
                await connection.execute(_INSERT_USER, row)
            except UniqueViolation:
                raise EmailTaken("another user has this email") from None

    async def find(self, user_id: UUID) -> User | None:
        """See UserRepository."""
        rows = await self._database.fetch(_SELECT_USER, (user_id,))
        return User(user_id, rows[0]["email"], rows[0]["name"], _credit(rows[0])) if rows else None

    async def credentials(self, email: str) -> Credentials | None:
        """See UserRepository."""
        rows = await self._database.fetch(_SELECT_CREDENTIALS, (email_key(email),))
        return Credentials(rows[0]["id"], rows[0]["password_hash"], rows[0]["currency"]) if rows else None

    async def replace_hash(self, user_id: UUID, old_hash: str, new_hash: str) -> None:
        """See UserRepository."""
        async with self._database.connection() as connection:
            await connection.execute(_UPDATE_HASH, (new_hash, user_id, old_hash))

    async def change_reservation(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """See UserRepository."""
        async with self._database.connection() as connection:
            user = await _fetch_one(connection, _LOCK_USER, user_id)
            if user is None:
                raise UserUnknown("there is no such user")
            before = _reservation(order_id, await _fetch_one(connection, _LOCK_RESERVATION, order_id))
            after = decide(_credit(user), before)
            if after != before:
                await connection.execute(_UPSERT_RESERVATION, (order_id, user_id, after.amount, after.state))
                difference = after.held_amount - (before.held_amount if before else 0)
                await connection.execute(_ADD_HELD, (difference, user_id))


_INSERT_USER = """INSERT INTO users (id, email, email_key, name, password_hash, currency, credit_limit)
          VALUES (%s, %s, %s, %s, %s, %s, %s)"""
_SELECT_USER = "SELECT email, name, currency, credit_limit, held FROM users WHERE id = %s"
_SELECT_CREDENTIALS = "SELECT id, password_hash, currency FROM users WHERE email_key = %s"
_UPDATE_HASH = "UPDATE users SET password_hash = %s WHERE id = %s AND password_hash = %s"
_LOCK_USER = "SELECT currency, credit_limit, held FROM users WHERE id = %s FOR UPDATE"
_LOCK_RESERVATION = "SELECT user_id, amount, state FROM reservations WHERE order_id = %s FOR UPDATE"
_UPSERT_RESERVATION = """INSERT INTO reservations (order_id, user_id, amount, state) VALUES (%s, %s, %s, %s)
           ON CONFLICT (order_id) DO UPDATE SET state = excluded.state, changed_at = now()"""
_ADD_HELD = "UPDATE users SET held = held + %s WHERE id = %s"


async def _fetch_one(connection: Connection, statement: LiteralString, key: UUID) -> DictRow | None:
    return await (await connection.execute(statement, (key,))).fetchone()


def _credit(row: DictRow) -> Credit:
    return Credit(row["currency"], row["credit_limit"], row["held"])


def _reservation(order_id: UUID, row: DictRow | None) -> Reservation | None:
    if row is None:
        return None
    return Reservation(order_id, row["user_id"], row["amount"], State(row["state"]))


class MemoryUserRepository:
    """The repository of unit tests; passes the same behaviour suite as the one in Postgres."""

    def __init__(self) -> None:
        self._users: dict[UUID, User] = {}
        self._credentials: dict[str, Credentials] = {}
        self._reservations: dict[UUID, Reservation] = {}

    async def add(self, user: User, password_hash: str) -> None:
        """See UserRepository."""
        _check_writable(user.email, user.name, password_hash)
        key = email_key(user.email)
        if key in self._credentials:
            raise EmailTaken("another user has this email")
        self._credentials[key] = Credentials(user.id, password_hash, user.credit.currency)
        self._users[user.id] = user

    async def find(self, user_id: UUID) -> User | None:
        """See UserRepository."""
        return self._users.get(user_id)

    async def credentials(self, email: str) -> Credentials | None:
        """See UserRepository."""
        _check_writable(email)
        return self._credentials.get(email_key(email))

    async def replace_hash(self, user_id: UUID, old_hash: str, new_hash: str) -> None:
        """See UserRepository."""
        _check_writable(new_hash)
        key = email_key(self._users[user_id].email)
        if self._credentials[key].password_hash == old_hash:
            self._credentials[key] = replace(self._credentials[key], password_hash=new_hash)

    async def change_reservation(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """See UserRepository."""
        user = self._users.get(user_id)
        if user is None:
            raise UserUnknown("there is no such user")
        before = self._reservations.get(order_id)
        after = decide(user.credit, before)
        held = user.credit.held + after.held_amount - (before.held_amount if before else 0)
        self._reservations[order_id] = after
        credit = Credit(user.credit.currency, user.credit.limit, held)
        self._users[user_id] = User(user.id, user.email, user.name, credit)


def _check_writable(*texts: str) -> None:
    """Raises the error that Postgres raises for a NUL."""
    if any("\x00" in text for text in texts):
        raise unstorable_value()
