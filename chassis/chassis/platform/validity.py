"""The time for which a credential is valid, by the clock that is ahead.

Servers end a credential by the wall clock. After a machine has slept, or its clock was set, that clock has moved on
while the monotonic one, and with it every timer of asyncio, stood still. The monotonic clock counts as well, because a
wall clock that is set back must not make a credential look valid for longer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

CHECK_SECONDS = 5.0
"""The longest wait for a due time; after a jump of the clock, a renewal starts within this time."""


def elapsed(monotonic: float, wall: float) -> float:
    """Returns the seconds since a moment on both clocks, by the one that moved further."""
    return max(time.monotonic() - monotonic, time.time() - wall)


def wall_clock() -> float:
    """Returns time.time(); as a function of its own it can be the default of a field."""
    return time.time()


@dataclass(frozen=True)
class Validity:
    """The `seconds` that a credential is valid from a moment on both clocks."""

    seconds: float
    monotonic: float
    wall: float

    @classmethod
    def from_now(cls, seconds: float) -> Validity:
        """Makes the validity of a credential that is requested at this moment."""
        return cls(seconds, time.monotonic(), time.time())

    def left(self) -> float:
        """Returns the seconds until the credential ends; negative after its end."""
        return self.seconds - elapsed(self.monotonic, self.wall)
