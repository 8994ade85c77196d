"""Postgres accepts every connection that the services and Vault may open at the same time, also during a deploy."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from chassis.postgres.database import Database
from chassis.postgres.event_store import EventStore

from ..repository import ROOT, SERVICES, job_text, package

# Postgres keeps these for superusers (superuser_reserved_connections).
RESERVED = 3
LISTENER = 1


def _largest_pool(open_one: Callable[..., Any]) -> int:
    return int(inspect.signature(open_one).parameters["max_size"].default)


def _code(service: str) -> str:
    return "\n".join(file.read_text() for file in (ROOT / SERVICES[service]).rglob("*.py"))


def _of_one_process(service: str) -> int:
    """The most connections of a process: its pool, what its event store adds to the pool, and the listener."""
    pools = _largest_pool(Database.open) if "Database.open(" in _code(service) else 0
    return pools + (_largest_pool(EventStore.open) + LISTENER if "EventStore.open(" in _code(service) else 0)


def _processes(service: str) -> int:
    """Every instance may still drain while its successor runs."""
    counts = re.findall(r"\bcount = (\d+)", job_text(service))
    assert counts
    return 2 * sum(map(int, counts))


def test_postgres_has_enough_connections_during_a_deploy() -> None:
    wanted = {service: _processes(service) * _of_one_process(service) for service in SERVICES}
    connection = json.loads((ROOT / "vault/engines/database/config/postgres.json").read_text())
    found = re.search(r"max_connections=(\d+)", job_text("postgres"))
    assert found
    assert wanted["order-service"] > wanted["user-service"] > 0
    assert sum(wanted.values()) + connection["max_open_connections"] <= int(found[1]) - RESERVED, wanted


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_uses_the_default_size_of_its_pools(service: str) -> None:
    assert not re.search(r"(Database|EventStore)\.open\([^)]*max_size", _code(service)), package(service)
