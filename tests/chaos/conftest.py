"""Fixtures of the chaos tests: the chaos command, a healthy stack at the start, and the load."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import httpx
import pytest
from support.chaos_command import Chaos
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser
from support.traffic.load import Request

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]


@pytest.fixture
def chaos(running: RunningStack) -> Iterator[Chaos]:
    made = Chaos(running)
    yield made
    made.off()


@pytest.fixture
def healthy(running: RunningStack, user: ApiUser) -> None:
    """The test begins on a healthy stack with every breaker closed; a breaker closes when calls succeed."""
    eventually("orders can be listed", lambda: user.get("/v1/orders").is_success, 30, every=0.3)
    running.wait_until_healthy()


@pytest.fixture
def reading(user: ApiUser) -> Callable[[int], Request]:
    """Reads of one order."""
    path = f"/v1/orders/{user.settled(user.place(PENNY).json()['id'])['id']}"
    return lambda _: Request("GET", path, httpx.codes.OK, user.headers)


@pytest.fixture
def placing(user: ApiUser, reading: Callable[[int], Request]) -> Callable[[int], Request]:
    """Orders, each with its own key, in turn with reads."""

    def arrival(number: int) -> Request:
        if number % 2:
            return reading(number)
        headers = user.headers | {"Idempotency-Key": secrets.token_hex(16)}
        return Request("POST", "/v1/orders", httpx.codes.CREATED, headers, {"currency": "EUR", "lines": PENNY})

    return arrival


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the measurements of each test."""
    for report in terminalreporter.stats.get("passed", []):
        if report.nodeid.startswith("tests/chaos/") and report.capstdout:
            name = report.nodeid.partition("::")[2]
            terminalreporter.write_line(f"{name}:\n  {report.capstdout.strip()}")
