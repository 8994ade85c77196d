"""Fixtures of all tiers. A test that asks for `running` needs a stack; without one it is skipped aloud."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from support.stack_under_test import RunningStack
from support.traffic.api_user import Person, register

from stack.config import KNOWN_SLOTS

pytest.register_assert_rewrite("behaviour")
# The same examples at each run, however slow the machine is: a red test is a change in the code.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")

if _names := os.environ.get("WAYPOST_STACKS"):
    # `./justw test` names a stack for each worker.
    _name = _names.split()[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))]
    os.environ |= {"WAYPOST_STACK": _name, "WAYPOST_SLOT": str(KNOWN_SLOTS[_name])}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a stack come first, then the one that takes it away: who has run that goes on with the rest."""
    needing = {item.path for item in items if "running" in getattr(item, "fixturenames", ())}

    def turn(item: pytest.Item) -> int:
        if item.path.name == "test_teardown.py" and item.path.parent.name == "infra":
            return 1
        return 0 if item.path in needing else 2

    items.sort(key=turn)


@pytest.fixture(scope="session")
def running() -> RunningStack:
    found = RunningStack()
    try:
        httpx.get(found.url("gateway") + "/livez", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        pytest.skip(f"stack {found.stack.name!r} is not running ({error}); `./justw test` deploys one")
    return found


@pytest.fixture
def http(running: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as client:
        yield client


@pytest.fixture
def person(http: httpx.Client) -> Person:
    return register(http)
