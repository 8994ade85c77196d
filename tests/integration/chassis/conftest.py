"""A Database on the module's Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from embedded.postgres import Postgres
from embedded.world import World, started


@pytest.fixture
async def world(postgres: Postgres, schema: str) -> AsyncIterator[World]:
    async with started(postgres, schema) as made:
        yield made
