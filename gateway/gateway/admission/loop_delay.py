"""Measures how long work waits in the event loop, which is the queue in front of every request."""

from __future__ import annotations

import asyncio

_INTERVAL_SECONDS = 0.05
# A loop that is in time is measured less often, because each measurement wakes a process at rest.
_IN_TIME_SECONDS, _IN_TIME_INTERVAL_SECONDS = 0.01, 0.25


class LoopDelay:
    """The last delay, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def measure(self) -> None:
        """Measures repeatedly until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            interval = _IN_TIME_INTERVAL_SECONDS if self.seconds < _IN_TIME_SECONDS else _INTERVAL_SECONDS
            due = loop.time() + interval
            await asyncio.sleep(interval)
            self.seconds = loop.time() - due
