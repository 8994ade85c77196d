"""What every test that breaks something stands on: the command that breaks it, and faults that are over at the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import httpx
import pytest
from support.chaos_command import Chaos
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person
from support.traffic.load import Request

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]


@pytest.fixture
def chaos(running: RunningStack) -> Iterator[Chaos]:
    made = Chaos(running)
    yield made
    made.off()


@pytest.fixture
def whole(running: RunningStack) -> None:
    """No test begins on what the one before has broken."""
    running.steady()


@pytest.fixture
def steady(running: RunningStack, person: Person) -> None:
    """As `whole`, and no breaker is open: one closes when calls pass, so some are made."""
    eventually("orders can be listed", lambda: person.get("/v1/orders").is_success, 30, every=0.3)
    running.steady()


@pytest.fixture
def reading(person: Person) -> Callable[[int], Request]:
    """Reads of one order, again and again."""
    path = f"/v1/orders/{person.settled(person.place(PENNY).json()['id'])['id']}"
    return lambda _: Request("GET", path, httpx.codes.OK, person.headers)


@pytest.fixture
def placing(person: Person, reading: Callable[[int], Request]) -> Callable[[int], Request]:
    """Orders placed, each with a key of its own, in turn with reads."""

    def arrival(number: int) -> Request:
        if number % 2:
            return reading(number)
        headers = person.headers | {"Idempotency-Key": secrets.token_hex(16)}
        return Request("POST", "/v1/orders", httpx.codes.CREATED, headers, {"currency": "EUR", "lines": PENNY})

    return arrival


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each test has seen, in its own words: how many, how much, how long."""
    for report in terminalreporter.stats.get("passed", []):
        if report.nodeid.startswith("tests/chaos/") and report.capstdout:
            name = report.nodeid.partition("::")[2]
            terminalreporter.write_line(f"{name}:\n  {report.capstdout.strip()}")
