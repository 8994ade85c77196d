"""Counts of calls, failures and slow calls over the last seconds, in ten buckets.

Invariant: adding is constant work, and what is older than the window counts for nothing at the next call.
"""

from __future__ import annotations

from collections import deque

_BUCKETS = 10


class Window:
    """What happened lately; `calls`, `failures` and `slow` are as of the last `add`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.calls = self.failures = self.slow = 0
        self._ends_at = 0.0
        self._bucket = [0.0, 0, 0, 0]
        self._buckets: deque[list[float]] = deque()

    def add(self, now: float, seconds: float, failed: bool, slow: bool) -> None:
        """Count one call at `now`, in a window of `seconds`."""
        if now >= self._ends_at:
            self._turn(now, seconds)
        bucket = self._bucket
        self.calls += 1
        bucket[1] += 1
        if failed:
            self.failures += 1
            bucket[2] += 1
        if slow:
            self.slow += 1
            bucket[3] += 1

    def _turn(self, now: float, seconds: float) -> None:
        self._ends_at = now + seconds / _BUCKETS
        self._bucket = [now, 0, 0, 0]
        while self._buckets and self._buckets[0][0] <= now - seconds:
            _, calls, failures, slow = self._buckets.popleft()
            self.calls -= int(calls)
            self.failures -= int(failures)
            self.slow -= int(slow)
        self._buckets.append(self._bucket)
