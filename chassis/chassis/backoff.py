"""Pauses between attempts: they double up to a longest one, with jitter so that a crowd does not come back at once."""

from __future__ import annotations

import random
from collections.abc import Iterator


def backoff(first: float, longest: float) -> Iterator[float]:
    """Seconds to wait before each next attempt, without end."""
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311
        delay = min(delay * 2, longest)
