"""Interrupts requests that take too long.

One timer of the event loop serves all of them. Nearly every request ends long before, so the timer runs out about once
in the time of a request, not at each.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import Context


class TimeLimits:
    """The requests that have a time limit now: `start(timeout, seconds)`, then `stop(timeout)`."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._checks_at = math.inf

    def start(self, timeout: asyncio.Timeout, seconds: float) -> None:
        """Makes a timeout of asyncio, which has been entered without a time, expire after `seconds`."""
        loop = asyncio.get_running_loop()
        ends_at = self._running[timeout] = loop.time() + seconds
        if ends_at < self._checks_at:
            self._check_at(loop, ends_at)

    def stop(self, timeout: asyncio.Timeout) -> None:
        """Forgets a timeout; call it before its block ends."""
        self._running.pop(timeout, None)

    def _check_at(self, loop: asyncio.AbstractEventLoop, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._checks_at = moment
        # An empty context: the timer serves all requests, so it must not keep the deadline and the span of one.
        self._timer = loop.call_at(moment, self._check, loop, context=Context())

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._timer, self._checks_at = loop.time(), None, math.inf
        for timeout, ends_at in list(self._running.items()):
            if ends_at <= now:
                del self._running[timeout]
                timeout.reschedule(now)
        if self._running:
            self._check_at(loop, min(self._running.values()))
