"""Exponential backoff: delays double up to a maximum, and jitter prevents simultaneous retries."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

_MOST_DOUBLINGS = 32


def delay(attempt: int, first: float, longest: float) -> float:
    """Returns the seconds to wait after failed attempt number `attempt` (1, 2, …)."""
    doubled = first * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)
    return min(doubled, longest) * random.uniform(0.5, 1.0)  # noqa: S311


def backoff(first: float, longest: float) -> Iterator[float]:
    """Yields the delay after each failed attempt, without end."""
    for attempt in itertools.count(1):
        yield delay(attempt, first, longest)
