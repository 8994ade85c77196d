"""A Database on the module's Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.postgres.leased_database import World, started
from support.postgres.private_postgres import Postgres


@pytest.fixture
async def world(postgres: Postgres, schema: str) -> AsyncIterator[World]:
    async with started(postgres, schema) as made:
        yield made
