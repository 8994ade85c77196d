"""Decides which traces are recorded: a number of traces in each second, then a share of the others.

The decision is made once for a trace, where it begins, and passed on by the flag of the traceparent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class TraceRate:
    """A token bucket that holds the traces of one second. Every trace is recorded before the first `change`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._per_second = 0.0
        self._share = 1.0
        self._tokens = 0.0
        self._filled_at = clock()

    def change(self, per_second: float, share: float) -> None:
        """Records up to `per_second` traces a second, and a `share` between 0 and 1 of those beyond."""
        self._per_second, self._share = per_second, share
        self._tokens = min(self._tokens, per_second)

    def admits(self, *, recorded_before: bool = False) -> bool:
        """Decides whether a trace that begins here is recorded.

        One that a process in front of this one records is recorded as well, unless both settings are 0.
        """
        now = self._clock()
        # A rate below 1 fills the bucket up to a whole trace as well, which takes longer than a second.
        most = max(1.0, self._per_second)
        self._tokens = min(most, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return True
        if recorded_before:
            return self._per_second > 0 or self._share > 0
        return self._chance() < self._share


trace_rate = TraceRate()
"""The rate of this process, which follows its settings."""
