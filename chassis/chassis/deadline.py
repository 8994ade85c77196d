"""The time a piece of work may still take; set once at the edge, it travels with the task and with every call it makes.

Invariant: a nested deadline can only shorten the outer one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ends_at: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Give the block at most `seconds` (None adds no limit). Nothing is interrupted: callees ask `remaining()`."""
    outer = _ends_at.get()
    limit(seconds)
    try:
        yield
    finally:
        _ends_at.set(outer)


def limit(seconds: float | None) -> None:
    """Shorten the deadline to `seconds` for the rest of this task: for an edge that gives each request its own."""
    outer = _ends_at.get()
    inner = None if seconds is None else time.monotonic() + seconds
    _ends_at.set(min((end for end in (outer, inner) if end is not None), default=None))


def remaining() -> float | None:
    """Seconds left, never below 0; None when no deadline is set."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def within(seconds: float) -> float:
    """The shorter of `seconds` and what is left of the current deadline."""
    left = remaining()
    return seconds if left is None else min(seconds, left)
