"""Schema migrations: applies the numbered SQL files in a package's `migrations/` folder in order, each of them once.

To add a table or a column, add the next `<package>/migrations/NNN_name.sql`; never edit a file that was applied.
Invariant: all pending files of a package are applied in one transaction under one lock, so instances may start
together.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import structlog
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from chassis.errors import ConfigurationError

log = structlog.get_logger(__name__)

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('schema_migrations ' || current_schema()))"
_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name       text PRIMARY KEY,
        checksum   text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


async def migrate(connection: AsyncConnection[DictRow], package: str) -> None:
    """Applies the pending `<package>/migrations/*.sql` and records each as "package/name".

    Raises ConfigurationError with the name of a migration that was edited after it had been applied.
    """
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute(_LOCK)
    await connection.execute(_TABLE)
    rows = await (await connection.execute("SELECT name, checksum FROM schema_migrations")).fetchall()
    applied = {row["name"]: row["checksum"] for row in rows}
    for name, sql in read_migrations(package):
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        if applied.get(name, checksum) != checksum:
            raise ConfigurationError(f"migration {name}: edited after it was applied")
        if name not in applied:
            await _apply(connection, name, sql, checksum)


def read_migrations(package: str) -> list[tuple[str, str]]:
    """Returns name and SQL of each migration of a package, in order."""
    folder = resources.files(package) / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(f"{package}/{file.name.removesuffix('.sql')}", file.read_text(encoding="utf-8")) for file in files]


async def _apply(connection: AsyncConnection[DictRow], name: str, sql: str, checksum: str) -> None:
    await connection.execute(sql, prepare=False)
    await connection.execute("INSERT INTO schema_migrations (name, checksum) VALUES (%s, %s)", (name, checksum))
    log.info("migration applied", migration=name)
