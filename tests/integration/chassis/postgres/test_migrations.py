"""The migrations on a real Postgres."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import psycopg
import pytest
import structlog
from support.postgres.database_under_test import DatabaseUnderTest
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.errors import ConfigurationError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an importable package `shop_schema` with one migration; returns its migrations folder."""
    folder = tmp_path / "shop_schema" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "shop_schema" / "__init__.py").touch()
    (folder / "001_users.sql").write_text("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1);")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop_schema", raising=False)
    return folder


async def test_an_edited_migration_is_reported_by_name(under_test: DatabaseUnderTest, package: Path) -> None:
    await under_test.database.migrate("shop_schema")
    (package / "001_users.sql").write_text("CREATE TABLE users (id bigint PRIMARY KEY);")
    with pytest.raises(ConfigurationError, match="shop_schema/001_users"):
        await under_test.database.migrate("shop_schema")


async def test_a_failed_migration_changes_nothing(under_test: DatabaseUnderTest, package: Path) -> None:
    (package / "002_broken.sql").write_text("CREATE TABLE orders (id int); SELECT nonsense();")
    with pytest.raises(psycopg.ProgrammingError):
        await under_test.database.migrate("shop_schema")
    (package / "002_broken.sql").write_text("CREATE TABLE orders (id int);")
    await under_test.database.migrate("shop_schema")


async def test_instances_that_start_together_apply_each_migration_once(
    under_test: DatabaseUnderTest, package: Path
) -> None:
    await asyncio.gather(*(under_test.database.migrate("shop_schema") for _ in range(5)))
    async with under_test.database.connection() as connection:
        rows = await (await connection.execute("SELECT id FROM users")).fetchall()
        names = await (await connection.execute("SELECT name FROM schema_migrations")).fetchall()
    assert (rows, names) == ([{"id": 1}], [{"name": "shop_schema/001_users"}])


async def test_migrated_tables_belong_to_the_owner_of_the_schema(
    under_test: DatabaseUnderTest, package: Path, postgres: Postgres
) -> None:
    await under_test.database.migrate("shop_schema")
    owners = postgres.rows(
        "SELECT tableowner FROM pg_tables WHERE tablename = 'users'", dbname=under_test.database.name
    )
    assert owners == [(under_test.database.name,)]


async def test_a_migration_that_waits_for_a_lock_lets_others_pass_and_is_applied_in_the_end(
    under_test: DatabaseUnderTest, package: Path, postgres: Postgres
) -> None:
    """All statements on the table queue behind a waiting ALTER TABLE, so it must give up again and again."""
    await under_test.database.migrate("shop_schema")
    # A migration may set the limit for itself; the next one has it again.
    (package / "002_slow.sql").write_text("SET LOCAL lock_timeout = 0; CREATE TABLE slow (id int);")
    (package / "003_name.sql").write_text("ALTER TABLE users ADD COLUMN name text;")
    schema, slowest = under_test.database.name, 0.0
    reader = await psycopg.AsyncConnection.connect(postgres.dsn(dbname=schema))
    await reader.execute(f"SELECT * FROM {schema}.users".encode())
    with structlog.testing.capture_logs() as logs:
        migrating = asyncio.create_task(under_test.database.migrate("shop_schema"))
        ends_at = time.monotonic() + 6
        while time.monotonic() < ends_at:
            began = time.monotonic()
            async with under_test.database.connection() as connection:
                await connection.execute("SELECT * FROM users")
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
        assert not migrating.done()
        await reader.close()
        await asyncio.wait_for(migrating, 20)
    assert slowest < 5, "the migration waits for two seconds at most"
    reasons = {entry["reason"] for entry in logs if entry["log_level"] == "warning"}
    assert reasons == {"a transaction holds a table that migration shop_schema/003_name changes; gave up after 2 s"}
    assert postgres.rows(f"SELECT name FROM {schema}.users", dbname=schema) == [(None,)]


async def test_a_migration_beside_one_that_hangs_says_what_it_waits_for(
    under_test: DatabaseUnderTest, package: Path, postgres: Postgres
) -> None:
    schema = under_test.database.name
    lock = f"SELECT pg_advisory_lock(hashtext('schema_migrations {schema}'))"
    with structlog.testing.capture_logs() as logs:
        async with await psycopg.AsyncConnection.connect(postgres.dsn(dbname=schema), autocommit=True) as another:
            await another.execute(lock.encode())
            migrating = asyncio.create_task(under_test.database.migrate("shop_schema"))
            await until("it says so", lambda: any("another instance" in str(entry.get("reason")) for entry in logs))
        await asyncio.wait_for(migrating, 20)
