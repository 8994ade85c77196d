"""Where users and their reservations are kept: the port, Postgres behind it, and the fake of the unit tests.

Invariant: changes of one user's credit happen one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, LiteralString, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import DictRow

from chassis.errors import unstorable_value
from user_service.domain import Credit, EmailTaken, Reservation, State, User, UserUnknown, email_key

if TYPE_CHECKING:
    from chassis.postgres.database import Database

Connection = AsyncConnection[DictRow]
Decide = Callable[[Credit, Reservation | None], Reservation]


@dataclass(frozen=True)
class Credentials:
    """By whom a password is known, and in which currency the credit of that user is."""

    user_id: UUID
    password_hash: str
    currency: str


class Accounts(Protocol):
    """What the User Service keeps; text with a NUL is RpcError(INVALID_ARGUMENT)."""

    async def add(self, user: User, password_hash: str) -> None:
        """Keep a new user; raises EmailTaken."""

    async def find(self, user_id: UUID) -> User | None:
        """The user as of now."""

    async def credentials(self, email: str) -> Credentials | None:
        """The credentials of the user with this email, in whatever case."""

    async def rehash(self, user_id: UUID, known: str, fresh: str) -> None:
        """Keep another hash of the same password, unless `known` is not the one that is kept any more."""

    async def change(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """Keep the reservation `decide` answers with, no other change between; raises UserUnknown."""


class PostgresAccounts:
    """Accounts in the tables of `migrations/`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user: User, password_hash: str) -> None:
        """See Accounts."""
        key, credit = email_key(user.email), user.credit
        row = (user.id, user.email, key, user.name, password_hash, credit.currency, credit.limit)
        async with self._database.connection() as connection:
            try:
                await connection.execute(_ADD, row)
            except UniqueViolation:
                raise EmailTaken("another user has this email") from None

    async def find(self, user_id: UUID) -> User | None:
        """See Accounts."""
        async with self._database.connection() as connection:
            row = await _one(connection, _FIND, user_id)
        return None if row is None else User(user_id, row["email"], row["name"], _credit(row))

    async def credentials(self, email: str) -> Credentials | None:
        """See Accounts."""
        async with self._database.connection() as connection:
            row = await _one(connection, _CREDENTIALS, email_key(email))
        return None if row is None else Credentials(row["id"], row["password_hash"], row["currency"])

    async def rehash(self, user_id: UUID, known: str, fresh: str) -> None:
        """See Accounts."""
        async with self._database.connection() as connection:
            await connection.execute(_REHASH, (fresh, user_id, known))

    async def change(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """See Accounts."""
        async with self._database.connection() as connection:
            user = await _one(connection, _LOCK, user_id)
            if user is None:
                raise UserUnknown("there is no such user")
            before = _reservation(order_id, await _one(connection, _RESERVATION, order_id))
            after = decide(_credit(user), before)
            if after != before:
                await connection.execute(_KEEP, (order_id, user_id, after.amount, after.state))
                difference = after.holds - (before.holds if before else 0)
                await connection.execute(_HOLD, (difference, user_id))


_ADD = """INSERT INTO users (id, email, email_key, name, password_hash, currency, credit_limit)
          VALUES (%s, %s, %s, %s, %s, %s, %s)"""
_FIND = "SELECT email, name, currency, credit_limit, held FROM users WHERE id = %s"
_CREDENTIALS = "SELECT id, password_hash, currency FROM users WHERE email_key = %s"
_REHASH = "UPDATE users SET password_hash = %s WHERE id = %s AND password_hash = %s"
_LOCK = "SELECT currency, credit_limit, held FROM users WHERE id = %s FOR UPDATE"
_RESERVATION = "SELECT user_id, amount, state FROM reservations WHERE order_id = %s FOR UPDATE"
_KEEP = """INSERT INTO reservations (order_id, user_id, amount, state) VALUES (%s, %s, %s, %s)
           ON CONFLICT (order_id) DO UPDATE SET state = excluded.state, changed_at = now()"""
_HOLD = "UPDATE users SET held = held + %s WHERE id = %s"


async def _one(connection: Connection, statement: LiteralString, key: UUID | str) -> DictRow | None:
    return await (await connection.execute(statement, (key,))).fetchone()


def _credit(row: DictRow) -> Credit:
    return Credit(row["currency"], row["credit_limit"], row["held"])


def _reservation(order_id: UUID, row: DictRow | None) -> Reservation | None:
    if row is None:
        return None
    return Reservation(order_id, row["user_id"], row["amount"], State(row["state"]))


class MemoryAccounts:
    """The accounts of unit tests; passes the same behaviour suite as the ones in Postgres."""

    def __init__(self) -> None:
        self._users: dict[UUID, User] = {}
        self._credentials: dict[str, Credentials] = {}
        self._reservations: dict[UUID, Reservation] = {}

    async def add(self, user: User, password_hash: str) -> None:
        """See Accounts."""
        _writable(user.email, user.name, password_hash)
        key = email_key(user.email)
        if key in self._credentials:
            raise EmailTaken("another user has this email")
        self._credentials[key] = Credentials(user.id, password_hash, user.credit.currency)
        self._users[user.id] = user

    async def find(self, user_id: UUID) -> User | None:
        """See Accounts."""
        return self._users.get(user_id)

    async def credentials(self, email: str) -> Credentials | None:
        """See Accounts."""
        _writable(email)
        return self._credentials.get(email_key(email))

    async def rehash(self, user_id: UUID, known: str, fresh: str) -> None:
        """See Accounts."""
        _writable(fresh)
        key = email_key(self._users[user_id].email)
        if self._credentials[key].password_hash == known:
            self._credentials[key] = replace(self._credentials[key], password_hash=fresh)

    async def change(self, user_id: UUID, order_id: UUID, decide: Decide) -> None:
        """See Accounts."""
        user = self._users.get(user_id)
        if user is None:
            raise UserUnknown("there is no such user")
        before = self._reservations.get(order_id)
        after = decide(user.credit, before)
        held = user.credit.held + after.holds - (before.holds if before else 0)
        self._reservations[order_id] = after
        credit = Credit(user.credit.currency, user.credit.limit, held)
        self._users[user_id] = User(user.id, user.email, user.name, credit)


def _writable(*texts: str) -> None:
    """Refuse what Postgres refuses."""
    if any("\x00" in text for text in texts):
        raise unstorable_value()
