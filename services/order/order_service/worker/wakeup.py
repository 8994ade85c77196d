"""Waits until an event is set or a time has passed."""

from __future__ import annotations

import asyncio


async def wait(wakeup: asyncio.Event, longest: float) -> None:
    """Waits until the wake-up event is set, at most `longest` seconds."""
    try:
        await asyncio.wait_for(wakeup.wait(), longest)
    except TimeoutError:
        return
