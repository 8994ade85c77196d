"""The deadline is inherited by tasks and only shrinks."""

from __future__ import annotations

import asyncio

import pytest

from chassis.deadline import LONGEST_SECONDS, at_most, deadline, remaining, shorten

DAYS = 24 * 3600.0
POSTGRES_MAXIMUM_MS = 2**31 - 1


def test_without_a_deadline_there_is_no_limit() -> None:
    assert remaining() is None
    assert at_most(3.0) == 3.0


def test_an_inner_deadline_cannot_extend_the_outer_one() -> None:
    with deadline(1.0), deadline(60.0):
        assert (remaining() or 99) <= 1.0


def test_an_inner_deadline_ends_with_its_block() -> None:
    with deadline(60.0):
        with deadline(1.0):
            assert at_most(30.0) <= 1.0
        assert (remaining() or 0) > 50


def test_a_deadline_of_none_keeps_the_outer_one() -> None:
    with deadline(1.0), deadline(None):
        assert (remaining() or 99) <= 1.0


def test_the_time_left_is_never_negative() -> None:
    with deadline(-5.0):
        assert remaining() == 0


@pytest.mark.parametrize("seconds", [30 * DAYS, 24.9 * DAYS, 1e15, float("inf")])
def test_a_deadline_beyond_every_timer_counts_as_the_longest(seconds: float) -> None:
    with deadline(seconds):
        assert remaining() == pytest.approx(LONGEST_SECONDS, abs=60)
        assert at_most(seconds) * 1000 < POSTGRES_MAXIMUM_MS
    assert at_most(seconds) == LONGEST_SECONDS


@pytest.mark.parametrize("seconds", [0.0, -0.001, -30 * DAYS, float("-inf")])
def test_a_deadline_that_has_passed_leaves_no_time(seconds: float) -> None:
    assert at_most(seconds) == 0
    with deadline(seconds):
        assert remaining() == 0
        assert at_most(5.0) == 0


async def test_a_deadline_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="number"):
        shorten(float("nan"))
    assert remaining() is None


async def test_a_task_inherits_the_deadline_of_its_creator() -> None:
    async def read() -> float | None:
        return remaining()

    with deadline(2.0):
        task = asyncio.create_task(read())
    assert await task == pytest.approx(2.0, abs=0.5)
    assert remaining() is None
