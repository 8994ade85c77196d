"""Delays between attempts."""

from __future__ import annotations

from itertools import islice

import pytest

from chassis.backoff import backoff, delay


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5, 0.5), (100_000, 0.5)])
def test_a_delay_doubles_up_to_the_longest_and_has_jitter(attempt: int, longest: float) -> None:
    delays = {delay(attempt, 0.1, 0.5) for _ in range(100)}
    assert longest / 2 <= min(delays) <= max(delays) <= longest
    assert len(delays) > 1


def test_backoff_yields_the_delay_of_each_attempt() -> None:
    first, second, *_, last = islice(backoff(1.0, 60.0), 10)
    assert 0.5 <= first <= 1.0 <= second <= 2.0
    assert 30.0 <= last <= 60.0
