"""Postgres takes every connection that the services and Vault may have open at once, also while versions change."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from chassis.postgres.database import Database
from chassis.postgres.eventstore import EventStore

from ..checkout import ROOT, SERVICES, job_text, package

# Postgres keeps these for superusers (superuser_reserved_connections).
RESERVED = 3
LISTENER = 1


def _largest_pool(open_one: Callable[..., Any]) -> int:
    return int(inspect.signature(open_one).parameters["max_size"].default)


def _code(service: str) -> str:
    return "\n".join(file.read_text() for file in (ROOT / SERVICES[service]).rglob("*.py"))


def _of_one_process(service: str) -> int:
    """What a process opens at most: its pool, and the pool and the listener of its event store."""
    pools = _largest_pool(Database.open) if "Database.open(" in _code(service) else 0
    return pools + (_largest_pool(EventStore.open) + LISTENER if "EventStore.open(" in _code(service) else 0)


def _processes(service: str) -> int:
    """Each instance may be draining while its successor is there already."""
    counts = re.findall(r"\bcount = (\d+)", job_text(service))
    assert counts
    return 2 * sum(map(int, counts))


def test_postgres_has_a_connection_for_everybody_who_may_want_one_during_a_deploy() -> None:
    wanted = {service: _processes(service) * _of_one_process(service) for service in SERVICES}
    connection = json.loads((ROOT / "vault/engines/database/config/postgres.json").read_text())
    found = re.search(r"max_connections=(\d+)", job_text("postgres"))
    assert found
    assert wanted["order-service"] > wanted["user-service"] > 0
    assert sum(wanted.values()) + connection["max_open_connections"] <= int(found[1]) - RESERVED, wanted


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_leaves_its_pools_as_large_as_they_are_counted(service: str) -> None:
    assert not re.search(r"(Database|EventStore)\.open\([^)]*max_size", _code(service)), package(service)
