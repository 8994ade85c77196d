"""Whatever fails or dies on the way of an order, credit is held by confirmed orders and nothing else."""

from __future__ import annotations

import pytest
from behaviour.machines import drive, must_fail
from behaviour.order.saga import BUGS, Saga, planted


def test_credit_is_neither_leaked_nor_doubled_whatever_fails() -> None:
    drive(Saga, examples=150, steps=25)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_credit_is_neither_leaked_nor_doubled_in_ten_thousand_lives() -> None:
    drive(Saga, examples=10_000, steps=25)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    must_fail(planted(bug), examples=5000, steps=25)
