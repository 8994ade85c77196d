"""The User Service's use cases on the module's Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from behaviour.user.service import Service, SettingsFactory, shipped
from support.postgres.database_under_test import database_under_test
from support.postgres.private_postgres import Postgres

from chassis.settings import Live
from user_service.user_repository import PostgresUserRepository


@pytest.fixture
def make_settings() -> SettingsFactory:
    return shipped


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> str:
    """Creates the schema with the tables of the service, which are empty at the beginning of each test."""
    name = postgres.make_schema("user_service")

    async def migrate() -> None:
        async with database_under_test(postgres, name) as world:
            await world.database.migrate("user_service")

    asyncio.run(migrate())
    return name


@pytest.fixture
async def service(postgres: Postgres, tables: str) -> AsyncIterator[Service]:
    async with database_under_test(postgres, tables) as world:
        postgres.execute(f"TRUNCATE {tables}.users, {tables}.reservations", dbname=tables)
        yield Service(Live(shipped()), users=PostgresUserRepository(world.database))
