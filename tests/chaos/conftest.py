"""What every test that breaks something stands on: a system that is whole, and faults that are over at the end."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from breakage import Chaos
from people import register
from stack_under_test import RunningStack, eventually


@pytest.fixture(autouse=True)
def steady(running: RunningStack, http: httpx.Client) -> None:
    """No test begins on what the one before has broken. An open breaker closes when calls pass, so some are made."""
    somebody = register(http)
    eventually("orders can be listed", lambda: somebody.get("/v1/orders").is_success, 30, every=0.3)
    running.steady()


@pytest.fixture
def chaos(running: RunningStack) -> Iterator[Chaos]:
    made = Chaos(running)
    yield made
    made.off()
