"""Fixtures of all tiers. A test that asks for `running` needs a stack; without one it is skipped with the reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from support.infrastructure.deployed_stack import DeployedStack
from support.stack_under_test import RunningStack
from support.traffic.api_user import ApiUser, register

from stack.config import KNOWN_SLOTS, ROOT, current

pytest.register_assert_rewrite("behaviour")
# The same examples at each run, however slow the machine is: a red test is a change in the code.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")

if _names := os.environ.get("WAYPOST_STACKS"):
    # `./justw test` gives each worker a stack of its own.
    _name = _names.split()[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))]
    os.environ |= {"WAYPOST_STACK": _name, "WAYPOST_SLOT": str(KNOWN_SLOTS[_name])}


def pytest_addoption(parser: pytest.Parser) -> None:
    where = "folder of the checkout whose stack tests/infra checks, on the machine of --hosts (default: this checkout)"
    parser.addoption("--checkout", help=where)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disturbs: changes the stack for a moment, so no other check may run meanwhile")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a stack come first, then the one that destroys it, then all others."""
    needing = {item.path for item in items if {"running", "deployed"} & set(getattr(item, "fixturenames", ()))}

    def rank(item: pytest.Item) -> int:
        if item.path.name == "test_teardown.py" and item.path.parent.name == "infra":
            return 1
        return 0 if item.path in needing else 2

    items.sort(key=rank)


@pytest.fixture(scope="session")
def running() -> RunningStack:
    found = RunningStack()
    try:
        httpx.get(found.url("gateway") + "/livez", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        pytest.skip(f"stack {found.stack.name!r} is not running ({error}); `./justw test` deploys one")
    return found


@pytest.fixture(scope="module")
def deployed(host: Any, request: pytest.FixtureRequest) -> DeployedStack:
    """The stack named by WAYPOST_STACK on the machine of `--hosts`, read by testinfra alone."""
    checkout, hosts = request.config.getoption("--checkout"), request.config.getoption("--hosts")
    found = DeployedStack(host, checkout or str(ROOT), current())
    stamp = host.file(f"{found.state}/logs/nomad.pid")
    if not stamp.exists or not host.file(f"/proc/{stamp.content_string.split()[0]}").exists:
        missing = f"no stack {found.stack.name!r} runs in {found.checkout}"
        pytest.fail(f"{missing} on {hosts or 'this machine'}") if checkout or hosts else pytest.skip(missing)
    return found


@pytest.fixture
def http(running: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as client:
        yield client


@pytest.fixture
def user(http: httpx.Client) -> ApiUser:
    return register(http)


@pytest.fixture(scope="module")
def secrets(deployed: DeployedStack) -> set[str]:
    """Every secret of the stack: the credentials of the operator, and what Vault stores for services."""
    (listed,) = deployed.vault("LIST secret/metadata")
    stored = deployed.vault(*(f"secret/data/{name}" for name in listed["keys"]))
    credentials = deployed.run("grep -rh . %s", f"{deployed.state}/secrets").split()
    return {*credentials, *(str(value) for secret in stored for value in secret["data"].values())}
