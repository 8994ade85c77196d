"""The deadline of the current task: set when a request arrives, inherited by every task and call made for it.

Invariant: a nested deadline can only shorten the outer one. `remaining()` is between 0 and LONGEST_SECONDS, whatever
the caller asked for, so every conversion of it (milliseconds for Postgres, timers, a gRPC deadline) is in range.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST_SECONDS = 24 * 3600.0
"""A longer deadline counts as this one. Postgres accepts at most 24.8 days."""

_ends_at: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Gives the block at most `seconds` (None adds no limit). Nothing is interrupted: callees check `remaining()`.

    Raises ValueError if `seconds` is not a number (NaN).
    """
    outer = _ends_at.get()
    shorten(seconds)
    try:
        yield
    finally:
        _ends_at.set(outer)


def shorten(seconds: float | None) -> None:
    """Shortens the deadline to `seconds` for the rest of this task; for a server, which runs a task per request."""
    outer = _ends_at.get()
    inner = None if seconds is None else time.monotonic() + _in_range(seconds)
    _ends_at.set(min((end for end in (outer, inner) if end is not None), default=None))


def remaining() -> float | None:
    """Returns the seconds left, never below 0; None if no deadline is set."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def at_most(seconds: float) -> float:
    """Returns `seconds`, or the seconds left if they are fewer; never below 0 or above LONGEST_SECONDS."""
    left = remaining()
    return _in_range(seconds) if left is None else min(_in_range(seconds), left)


def _in_range(seconds: float) -> float:
    if math.isnan(seconds):
        raise ValueError("a deadline must be a number of seconds")
    return min(max(0.0, seconds), LONGEST_SECONDS)
