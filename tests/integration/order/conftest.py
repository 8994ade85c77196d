"""Fixtures: the Order Service on the Postgres of the module, with a fake of the User Service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from behaviour.order.support.service import Service, SettingsFactory, shipped
from behaviour.order.support.storages import make_tables, on_postgres
from support.postgres.private_postgres import Postgres


@pytest.fixture
def make_settings() -> SettingsFactory:
    return shipped


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> str:
    """Returns the schema with the tables of the service; each test starts by emptying them."""
    name = postgres.make_schema("order_service")
    make_tables(postgres, name)
    return name


@pytest.fixture
async def service(postgres: Postgres, tables: str) -> AsyncIterator[Service]:
    async with on_postgres(postgres, tables) as storage:
        yield Service(shipped(), storage)
