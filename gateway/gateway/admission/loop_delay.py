"""Measures how long work waits in the event loop, which is the queue in front of every request."""

from __future__ import annotations

import asyncio

_INTERVAL_SECONDS = 0.05


class LoopDelay:
    """The last delay, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def measure(self) -> None:
        """Measures repeatedly until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _INTERVAL_SECONDS
            await asyncio.sleep(_INTERVAL_SECONDS)
            self.seconds = loop.time() - due
