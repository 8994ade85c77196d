"""The deadline travels with the task and only ever shrinks."""

from __future__ import annotations

import asyncio

import pytest

from chassis.deadline import deadline, remaining, within


def test_without_a_deadline_there_is_no_limit() -> None:
    assert remaining() is None
    assert within(3.0) == 3.0


def test_an_inner_deadline_cannot_extend_the_outer_one() -> None:
    with deadline(1.0), deadline(60.0):
        assert (remaining() or 99) <= 1.0


def test_an_inner_deadline_ends_with_its_block() -> None:
    with deadline(60.0):
        with deadline(1.0):
            assert within(30.0) <= 1.0
        assert (remaining() or 0) > 50


def test_no_seconds_keep_the_outer_deadline() -> None:
    with deadline(1.0), deadline(None):
        assert (remaining() or 99) <= 1.0


def test_what_is_over_is_zero_not_negative() -> None:
    with deadline(-5.0):
        assert remaining() == 0


async def test_a_task_inherits_the_deadline_of_its_maker() -> None:
    async def ask() -> float | None:
        return remaining()

    with deadline(2.0):
        task = asyncio.create_task(ask())
    assert await task == pytest.approx(2.0, abs=0.5)
    assert remaining() is None
