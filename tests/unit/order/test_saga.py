"""Only confirmed orders hold credit, whatever fails while they are processed; a planted bug is found."""

from __future__ import annotations

import pytest
from behaviour.order.saga import FREQUENT_BUGS, RARE_BUGS, Saga, Turn, planted
from behaviour.order.support.faulty_ports import Fault
from behaviour.state_machines import drive, must_fail


def test_credit_is_neither_leaked_nor_doubled_whatever_fails() -> None:
    drive(Saga, examples=100, steps=25)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_credit_is_neither_leaked_nor_doubled_in_ten_thousand_examples() -> None:
    drive(Saga, examples=10_000, steps=25)


@pytest.mark.parametrize("bug", FREQUENT_BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    must_fail(planted(bug), examples=2000, steps=25)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", RARE_BUGS)
def test_a_rare_planted_bug_is_found_too(bug: str) -> None:
    must_fail(planted(bug), examples=5000, steps=25)


def example_of_rare_bugs(saga: Saga) -> None:
    """Runs the steps that show the rare bugs: a call that timed out arrives after all others."""
    first = saga.place(600)
    saga.work([], Turn([Fault.NONE]))
    saga.place(600)
    saga.work([], Turn([Fault.CALL_LATE]))
    saga.work([], Turn([Fault.NONE]))
    saga.cancel(first)
    saga.teardown()


@pytest.mark.parametrize("bug", RARE_BUGS)
def test_the_example_of_rare_bugs_fails_with_each_of_them(bug: str) -> None:
    with pytest.raises(AssertionError):
        example_of_rare_bugs(planted(bug)())


def test_the_example_of_rare_bugs_passes_without_them() -> None:
    example_of_rare_bugs(Saga())
