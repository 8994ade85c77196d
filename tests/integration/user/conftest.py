"""The User Service's use cases on the module's Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from behaviour.user.service import Service, SettingsFactory, shipped
from support.postgres.leased_database import started
from support.postgres.private_postgres import Postgres

from user_service.user_repository import PostgresAccounts


@pytest.fixture
def make_settings() -> SettingsFactory:
    return shipped


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> str:
    """The schema in which the tables of the service are; each test begins with empty ones."""
    name = postgres.make_schema("user_service")

    async def migrate() -> None:
        async with started(postgres, name) as world:
            await world.database.migrate("user_service")

    asyncio.run(migrate())
    return name


@pytest.fixture
async def service(postgres: Postgres, tables: str) -> AsyncIterator[Service]:
    async with started(postgres, tables) as world:
        async with world.database.connection() as connection:
            await connection.execute("TRUNCATE users, reservations")
        yield Service(shipped(), accounts=PostgresAccounts(world.database))
