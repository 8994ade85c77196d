"""The deadline of the current task: set when a request arrives, inherited by every task and call made for it.

Invariant: a nested deadline can only shorten the outer one. `remaining()` is between 0 and LONGEST_SECONDS, whatever
the caller asked for, so every conversion of it (milliseconds for Postgres, timers, a gRPC deadline) is in range.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

LONGEST_SECONDS = 24 * 3600.0
"""A longer deadline counts as this one. Postgres accepts at most 24.8 days."""

_ends_at: ContextVar[float | None] = ContextVar("deadline", default=None)


class Deadline:
    """Gives a block at most its seconds; made by `deadline`."""

    __slots__ = ("_outer", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._outer: float | None = None

    def __enter__(self) -> None:
        self._outer = _ends_at.get()
        shorten(self._seconds)

    def __exit__(self, *_: object) -> None:
        _ends_at.set(self._outer)


def deadline(seconds: float | None) -> Deadline:
    """Gives the block at most `seconds` (None adds no limit). Nothing is interrupted: callees check `remaining()`.

    The block raises ValueError when it begins if `seconds` is not a number (NaN).
    """
    return Deadline(seconds)


def replace(seconds: float) -> None:
    """Sets the deadline of this context whatever the outer one; for work that several callers share."""
    _ends_at.set(time.monotonic() + _in_range(seconds))


def shorten(seconds: float | None) -> None:
    """Shortens the deadline to `seconds` for the rest of this task; for a server, which runs a task per request."""
    if seconds is None:
        return
    outer, inner = _ends_at.get(), time.monotonic() + _in_range(seconds)
    if outer is None or inner < outer:
        _ends_at.set(inner)


def remaining() -> float | None:
    """Returns the seconds left, never below 0; None if no deadline is set."""
    ends_at = _ends_at.get()
    return None if ends_at is None else _not_negative(ends_at - time.monotonic())


def at_most(seconds: float) -> float:
    """Returns `seconds`, or the seconds left if they are fewer; never below 0 or above LONGEST_SECONDS."""
    wanted, ends_at = _in_range(seconds), _ends_at.get()
    if ends_at is None:
        return wanted
    left = ends_at - time.monotonic()
    return wanted if wanted < left else _not_negative(left)


def _in_range(seconds: float) -> float:
    if 0.0 <= seconds <= LONGEST_SECONDS:
        return seconds
    if math.isnan(seconds):
        raise ValueError("a deadline must be a number of seconds")
    return 0.0 if seconds < 0 else LONGEST_SECONDS


def _not_negative(seconds: float) -> float:
    return seconds if seconds > 0 else 0.0
