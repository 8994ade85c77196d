"""The tables of the event store on Postgres, which migrations of the project make."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from support.postgres.database_under_test import DatabaseUnderTest

from chassis.errors import ConfigurationError
from chassis.postgres.event_store import EventStore

from .test_event_store import create_tables


async def test_a_store_without_its_tables_does_not_open(under_test: DatabaseUnderTest) -> None:
    with pytest.raises(ConfigurationError, match="migrate"):
        await EventStore.open(under_test.database)


async def test_the_tables_are_those_that_the_library_would_create(under_test: DatabaseUnderTest) -> None:
    await create_tables(under_test)
    datastore = PostgresDatastore(under_test.database.name, **_superuser(under_test), schema="reference")
    under_test.vault.postgres.execute("CREATE SCHEMA reference", dbname=under_test.database.name)
    recorder = PostgresApplicationRecorder(datastore, events_table_name="events")
    await asyncio.to_thread(recorder.create_table)
    await asyncio.to_thread(datastore.close)
    ours, theirs = _columns(under_test, under_test.database.name), _columns(under_test, "reference")
    assert ours == theirs
    assert ours


def _superuser(under_test: DatabaseUnderTest) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": under_test.vault.postgres.port, "user": "postgres", "password": ""}


def _columns(under_test: DatabaseUnderTest, schema: str) -> list[tuple[Any, ...]]:
    return under_test.vault.postgres.rows(
        "SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        f" WHERE c.relnamespace = '{schema}'::regnamespace AND c.relname ~ '^(events|stored)' ORDER BY 1, a.attnum",
        dbname=under_test.database.name,
    )
