"""Schema migrations: applies the numbered SQL files in a package's `migrations/` folder in order, each of them once.

To add a table or a column, add the next `<package>/migrations/NNN_name.sql`; never edit a file that was applied.
Invariant: all pending files of a package are applied in one transaction under one lock, so instances may start
together. No statement waits longer than LOCK_SECONDS for a lock, because all later statements on the table wait behind
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources

import structlog
from psycopg import AsyncConnection
from psycopg.errors import InsufficientPrivilege, LockNotAvailable, UndefinedTable
from psycopg.rows import DictRow

from chassis.errors import ConfigurationError

log = structlog.get_logger(__name__)

LOCK_SECONDS = 2
_LOCK_TIMEOUT = f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('schema_migrations ' || current_schema()))"
_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name       text PRIMARY KEY,
        checksum   text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


# The login of the running service reads this table and never writes it.
_READ_ONLY = """
    DO $$
    DECLARE
        runtime text := current_schema() || '_runtime';
    BEGIN
        EXECUTE format('REVOKE ALL ON schema_migrations FROM %I', runtime);
        EXECUTE format('GRANT SELECT ON schema_migrations TO %I', runtime);
    END $$
"""


class MigrationBlocked(Exception):  # noqa: N818 - names a state, nothing is wrong with the migration
    """A lock was not granted in time. Nothing was applied, so the migrations can be repeated."""


async def is_migrated(connection: AsyncConnection[DictRow], packages: Sequence[str]) -> bool:
    """Returns whether every migration is applied. Raises ConfigurationError with the name of one that was edited."""
    try:
        applied = await _applied(connection)
    except (UndefinedTable, InsufficientPrivilege):
        return False
    return not any(_pending(package, applied) for package in packages)


async def migrate(connection: AsyncConnection[DictRow], package: str) -> None:
    """Applies the pending `<package>/migrations/*.sql` and records each as "package/name".

    Raises ConfigurationError with the name of a migration that was edited after it had been applied, and
    MigrationBlocked.
    """
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute(_LOCK_TIMEOUT)
    await _or_blocked(connection, "another instance applies migrations", _LOCK)
    await connection.execute(_TABLE)
    await connection.execute(_READ_ONLY)
    for name, sql, checksum in _pending(package, await _applied(connection)):
        # A migration may have set another one.
        await connection.execute(_LOCK_TIMEOUT)
        await _or_blocked(connection, f"a transaction holds a table that migration {name} changes", sql)
        await connection.execute("INSERT INTO schema_migrations (name, checksum) VALUES (%s, %s)", (name, checksum))
        log.info("migration applied", migration=name)


def read_migrations(package: str) -> list[tuple[str, str]]:
    """Returns name and SQL of each migration of a package, in order."""
    folder = resources.files(package) / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(f"{package}/{file.name.removesuffix('.sql')}", file.read_text(encoding="utf-8")) for file in files]


def _pending(package: str, applied: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Returns name, SQL and checksum of each migration that is not applied."""
    pending = []
    for name, sql in read_migrations(package):
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        if applied.get(name, checksum) != checksum:
            raise ConfigurationError(f"migration {name}: edited after it was applied")
        if name not in applied:
            pending.append((name, sql, checksum))
    return pending


async def _applied(connection: AsyncConnection[DictRow]) -> dict[str, str]:
    rows = await (await connection.execute("SELECT name, checksum FROM schema_migrations")).fetchall()
    return {row["name"]: row["checksum"] for row in rows}


async def _or_blocked(connection: AsyncConnection[DictRow], why: str, sql: str) -> None:
    try:
        await connection.execute(sql.encode(), prepare=False)
    except LockNotAvailable as error:
        raise MigrationBlocked(f"{why}; gave up after {LOCK_SECONDS} s") from error
