"""A Database on the module's private Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres


@pytest.fixture
async def under_test(postgres: Postgres, schema: str) -> AsyncIterator[DatabaseUnderTest]:
    # Its tests create tables of their own.
    async with database_under_test(postgres, schema, role=schema) as made:
        yield made
