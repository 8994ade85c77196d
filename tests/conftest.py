"""Fixtures of all tiers. A test that asks for `running` needs a stack; without one it is skipped aloud."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from people import Person, register
from stack_under_test import RunningStack

pytest.register_assert_rewrite("behaviour")
# The same examples at each run, however slow the machine is: a red test is a change in the code.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")


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
