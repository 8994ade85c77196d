"""The login of a running service reads and adds events; only the owner changes the schema, in migrations."""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any

import psycopg
import pytest
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres

from chassis.postgres.migrate import read_migrations

PACKAGES = {"order": ("chassis", "order_service"), "user": ("user_service",)}
ADD = """INSERT INTO events (originator_id, originator_version, topic, state)
         VALUES (gen_random_uuid(), 1, 'OrderPlaced', '')"""
FORBIDDEN = [
    "UPDATE events SET topic = 'Other'",
    "DELETE FROM events",
    "TRUNCATE events",
    "DROP TABLE events",
    "DROP SCHEMA {schema} CASCADE",
    "ALTER TABLE events DROP COLUMN state",
    "ALTER TABLE events RENAME TO lost",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "CREATE RULE gone AS ON INSERT TO events DO INSTEAD NOTHING",
    "CREATE TRIGGER odd BEFORE INSERT ON events EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "DROP INDEX events_notification_id_idx",
    "SELECT setval('events_notification_id_seq', 1)",
    "SELECT * FROM events FOR UPDATE",
    "INSERT INTO events SELECT * FROM events ON CONFLICT (originator_id, originator_version) DO UPDATE SET topic = ''",
    "MERGE INTO events USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    "CREATE TABLE mine (id int)",
    "ALTER TABLE orders DROP COLUMN total",
    "DROP TABLE orders",
    "UPDATE schema_migrations SET checksum = ''",
    "SET ROLE {schema}",
    "SET SESSION AUTHORIZATION {schema}",
    "ALTER TABLE events OWNER TO {schema}_runtime",
    "REASSIGN OWNED BY {schema} TO {schema}_runtime",
]
ALL = ["DELETE", "INSERT", "SELECT", "UPDATE"]
EXPECTED = {
    "order": {
        "events": ["INSERT", "MAINTAIN", "SELECT"],
        "schema_migrations": ["SELECT"],
        **dict.fromkeys(("orders", "projections", "outbox", "idempotency_keys", "leader_terms", "placing_pauses"), ALL),
    },
    "user": {"schema_migrations": ["SELECT"], "users": ALL, "reservations": ALL},
}
GRANTED = """SELECT relname, privilege_type FROM pg_class, aclexplode(relacl)
             WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r'
             AND grantee = '{schema}_runtime'::regrole"""


async def run(under_test: DatabaseUnderTest, statement: str) -> None:
    async with under_test.database.connection() as connection:
        await connection.execute(statement.format(schema=under_test.database.name).encode())


def granted(postgres: Postgres, schema: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, privilege in postgres.rows(GRANTED.format(schema=schema), dbname=schema):
        found.setdefault(table, []).append(privilege)
    return {table: sorted(privileges) for table, privileges in found.items()}


def tables(postgres: Postgres, schema: str) -> set[str]:
    query = f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' AND tableowner = '{schema}'"
    return {table for (table,) in postgres.rows(query, dbname=schema)}


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> str:
    schema = postgres.make_schema("order_service")

    async def migrate() -> None:
        async with database_under_test(postgres, schema) as under_test:
            await under_test.database.migrate(*PACKAGES["order"])
            await run(under_test, ADD)

    asyncio.run(migrate())
    return schema


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_login_of_the_service_cannot_change_events_or_the_schema(
    postgres: Postgres, migrated: str, statement: str
) -> None:
    async with database_under_test(postgres, migrated) as under_test:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await run(under_test, statement)
    assert postgres.rows("SELECT count(*) FROM order_service.events", dbname=migrated) == [(1,)]


@pytest.mark.parametrize("statement", [ADD, "SELECT * FROM events", "LOCK TABLE events IN EXCLUSIVE MODE"])
async def test_the_login_of_the_service_reads_and_adds_events(
    postgres: Postgres, migrated: str, statement: str
) -> None:
    async with (
        database_under_test(postgres, migrated) as under_test,
        under_test.database.connection() as connection,
        connection.transaction(force_rollback=True),
    ):
        await connection.execute(statement.encode())


@pytest.mark.parametrize("service", PACKAGES)
async def test_every_table_belongs_to_the_owner_and_grants_what_the_service_needs(
    postgres: Postgres, schema: str, service: str
) -> None:
    async with database_under_test(postgres, schema) as under_test:
        await under_test.database.migrate(*PACKAGES[service])
    assert granted(postgres, schema) == EXPECTED[service]
    assert tables(postgres, schema) == set(EXPECTED[service])


@pytest.mark.parametrize("service", PACKAGES)
async def test_tables_of_the_version_with_one_role_end_with_the_same_owner_and_grants(
    postgres: Postgres, schema: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the roles were two, each login was the owner, and a runtime role had no privileges."""
    made = f"ALTER DEFAULT PRIVILEGES FOR ROLE {schema} IN SCHEMA {schema}"
    without = f"{made} REVOKE ALL ON TABLES FROM {schema}_runtime"
    postgres.execute(without, f"{made} REVOKE ALL ON SEQUENCES FROM {schema}_runtime", dbname=schema)
    before: dict[str, Any] = {
        package: list(takewhile(lambda found: not found[0].endswith("_runtime_role"), read_migrations(package)))
        for package in PACKAGES[service]
    }
    async with database_under_test(postgres, schema, role=schema) as under_test:
        with monkeypatch.context() as patch:
            patch.setattr("chassis.postgres.migrate.read_migrations", before.get)
            patch.setattr("chassis.postgres.migrate._READ_ONLY", "SELECT 1")
            await under_test.database.migrate(*PACKAGES[service])
        if service == "order":
            await run(under_test, "CREATE SCHEMA rebuild_orders CREATE TABLE rebuild_orders.orders (id uuid)")
    assert granted(postgres, schema) == {}
    async with database_under_test(postgres, schema) as under_test:
        await under_test.database.migrate(*PACKAGES[service])
    assert granted(postgres, schema) == EXPECTED[service]
    assert tables(postgres, schema) == set(EXPECTED[service])
    assert postgres.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'rebuild_orders'", dbname=schema) == []


async def test_migrations_use_a_login_of_the_owner_and_give_it_back(postgres: Postgres, schema: str) -> None:
    async with database_under_test(postgres, schema) as under_test:
        await under_test.database.migrate("user_service")
        runtime, owner = under_test.vault.issued
        members = "SELECT rolname FROM pg_roles WHERE pg_has_role(oid, '{}', 'MEMBER') AND rolcanlogin AND NOT rolsuper"
        assert postgres.rows(members.format(schema)) == []
        assert postgres.rows(members.format(f"{schema}_runtime")) == [(runtime.username,)]
        await under_test.database.migrate("user_service")
        assert under_test.vault.issued == [runtime, owner], "with nothing to apply, no login of the owner is issued"
