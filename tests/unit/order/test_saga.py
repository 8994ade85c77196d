"""Whatever fails or dies on the way of an order, credit is held by confirmed orders and nothing else."""

from __future__ import annotations

import pytest
from behaviour.order.saga import FREQUENT_BUGS, RARE_BUGS, Saga, Turn, planted
from behaviour.order.support.faulty_ports import Fate
from behaviour.state_machines import drive, must_fail


def test_credit_is_neither_leaked_nor_doubled_whatever_fails() -> None:
    drive(Saga, examples=100, steps=25)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_credit_is_neither_leaked_nor_doubled_in_ten_thousand_lives() -> None:
    drive(Saga, examples=10_000, steps=25)


@pytest.mark.parametrize("bug", FREQUENT_BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    must_fail(planted(bug), examples=2000, steps=25)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", RARE_BUGS)
def test_a_planted_bug_that_shows_seldom_is_found_too(bug: str) -> None:
    must_fail(planted(bug), examples=5000, steps=25)


def life(saga: Saga) -> None:
    """The life that shows the rare bugs: a call that was given up arrives after all else is done."""
    first = saga.place(600)
    saga.work([], Turn([Fate.FINE]))
    saga.place(600)
    saga.work([], Turn([Fate.LATE]))
    saga.work([], Turn([Fate.FINE]))
    saga.cancel(first)
    saga.teardown()


@pytest.mark.parametrize("bug", RARE_BUGS)
def test_the_life_that_shows_a_rare_bug_fails_with_it(bug: str) -> None:
    with pytest.raises(AssertionError):
        life(planted(bug)())


def test_the_life_that_shows_the_rare_bugs_passes_without_them() -> None:
    life(Saga())
