"""Fixtures of all tiers. A test that asks for `running` needs a stack; without one it is skipped aloud."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from people import Person, register
from stack_under_test import RunningStack

from stack.config import KNOWN_SLOTS

pytest.register_assert_rewrite("behaviour")
# The same examples at each run, however slow the machine is: a red test is a change in the code.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")

# What breaks and loads most; the other half of the tests that need a stack waits most.
HEAVY = ("chaos/", "integration/test_failures.py", "integration/test_lag.py")
NOT_HEAVY = ("chaos/test_rotations.py", "chaos/test_tooling.py", "chaos/test_workers.py")
if _names := os.environ.get("WAYPOST_STACKS"):
    # `./justw test` names a stack for each worker.
    _name = _names.split()[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))]
    os.environ |= {"WAYPOST_STACK": _name, "WAYPOST_SLOT": str(KNOWN_SLOTS[_name])}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Who runs beside whom: two halves of what needs a stack; of the rest, file by file, whoever has time."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        group = file
        if "running" in getattr(item, "fixturenames", ()):
            group = "heavy" if file.startswith(HEAVY) and file not in NOT_HEAVY else "calm"
        item.add_marker(pytest.mark.xdist_group(group))


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
