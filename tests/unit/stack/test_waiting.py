"""Waiting with a deadline: the first true value, the error of a timeout, and errors that are retried."""

from __future__ import annotations

import time

import pytest

from stack.console import StackError
from stack.waiting import poll, retry, wait_until


def too_slow() -> StackError:
    return StackError("the tea is not ready", "waited", "wait longer")


def test_the_first_true_value_is_returned() -> None:
    values = iter([0, "", 7, 8])
    assert wait_until(lambda: next(values), 10, too_slow, interval=0) == 7


def test_a_timeout_raises_the_given_error() -> None:
    with pytest.raises(StackError, match="the tea is not ready"):
        wait_until(lambda: False, 0.05, too_slow, interval=0.01)


def test_a_poll_returns_the_last_value_after_its_deadline() -> None:
    began = time.monotonic()
    assert poll(lambda: 0, 0.05, interval=0.01) == 0
    assert 0.05 <= time.monotonic() - began < 5


def test_a_condition_is_checked_once_even_without_any_time() -> None:
    assert poll(lambda: "yes", 0) == "yes"


def test_an_accepted_error_is_retried_and_another_one_is_raised() -> None:
    outcomes = iter([OSError("starting"), OSError("starting"), ValueError("wrong")])

    def action() -> None:
        raise next(outcomes)

    with pytest.raises(ValueError, match="wrong"):
        retry(action, 10, lambda error: isinstance(error, OSError), interval=0)


def test_an_accepted_error_is_raised_after_the_deadline() -> None:
    def action() -> None:
        raise OSError("starting")

    with pytest.raises(OSError, match="starting"):
        retry(action, 0.05, lambda _: True, interval=0.01)
