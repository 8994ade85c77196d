"""Counts calls, failures and slow calls over the last seconds, in ten buckets.

Invariant: adding a call takes constant time, and buckets older than the window are dropped when a new one starts.
"""

from __future__ import annotations

from collections import deque

_BUCKETS = 10


class RollingWindow:
    """Recent outcomes; `calls`, `failures` and `slow` are as of the last `add`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drops all counts."""
        self.calls = self.failures = self.slow = 0
        self._bucket_ends_at = 0.0
        self._bucket = [0.0, 0, 0, 0]
        self._buckets: deque[list[float]] = deque()

    def add(self, now: float, seconds: float, failed: bool, slow: bool) -> None:
        """Counts one call at the time `now`, in a window of `seconds`."""
        if now >= self._bucket_ends_at:
            self._start_bucket(now, seconds)
        bucket = self._bucket
        self.calls += 1
        bucket[1] += 1
        if failed:
            self.failures += 1
            bucket[2] += 1
        if slow:
            self.slow += 1
            bucket[3] += 1

    def _start_bucket(self, now: float, seconds: float) -> None:
        self._bucket_ends_at = now + seconds / _BUCKETS
        self._bucket = [now, 0, 0, 0]
        while self._buckets and self._buckets[0][0] <= now - seconds:
            _, calls, failures, slow = self._buckets.popleft()
            self.calls -= int(calls)
            self.failures -= int(failures)
            self.slow -= int(slow)
        self._buckets.append(self._bucket)
