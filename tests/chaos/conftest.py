"""What every test that breaks something stands on: the command that breaks it, and faults that are over at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from breakage import Chaos
from stack_under_test import RunningStack


@pytest.fixture
def chaos(running: RunningStack) -> Iterator[Chaos]:
    made = Chaos(running)
    yield made
    made.off()


@pytest.fixture
def whole(running: RunningStack) -> None:
    """No test begins on what the one before has broken."""
    running.steady()
