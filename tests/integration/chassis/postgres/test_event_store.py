"""The event store on Postgres passes the behaviour suite that both event stores share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from behaviour.event_log import *  # noqa: F403
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres

from chassis.events.record import RecordedEvent
from chassis.postgres.event_store import EventStore

KEYS = "CREATE TABLE keys (key text CONSTRAINT keys_key PRIMARY KEY, stream uuid NOT NULL)"


def insert_key(cursor: Any, events: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
    stream = events[0].stream if events else uuid4()
    cursor.execute("INSERT INTO keys (key, stream) VALUES (%s, %s)", (extra["key"], stream))


async def create_tables(under_test: DatabaseUnderTest) -> None:
    await under_test.database.migrate("chassis")
    schema = under_test.database.name
    as_owner = (f"SET search_path = {schema}", f"SET ROLE {schema}")
    await asyncio.to_thread(under_test.vault.postgres.execute, *as_owner, KEYS, dbname=schema)


@pytest.fixture
async def store(postgres: Postgres, schema: str) -> AsyncIterator[EventStore]:
    async with database_under_test(postgres, schema) as under_test:
        await create_tables(under_test)
        yield await EventStore.open(under_test.database, write_rows=insert_key)
