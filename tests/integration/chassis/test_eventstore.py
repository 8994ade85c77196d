"""The event log on Postgres passes the suite of event logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from behaviour.event_log import *  # noqa: F403
from support.postgres.leased_database import World, started
from support.postgres.private_postgres import Postgres

from chassis.events.record import RecordedEvent
from chassis.postgres.eventstore import EventStore

KEYS = "CREATE TABLE keys (key text CONSTRAINT keys_key PRIMARY KEY, stream uuid NOT NULL)"


def postgres_keys(cursor: Any, events: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
    stream = events[0].stream if events else uuid4()
    cursor.execute("INSERT INTO keys (key, stream) VALUES (%s, %s)", (extra["key"], stream))


async def prepare(world: World) -> None:
    await world.database.migrate("chassis")
    async with world.database.connection() as connection:
        await connection.execute(KEYS)


@pytest.fixture
async def store(postgres: Postgres, schema: str) -> AsyncIterator[EventStore]:
    async with started(postgres, schema) as world:
        await prepare(world)
        yield await EventStore.open(world.database, within=postgres_keys)
