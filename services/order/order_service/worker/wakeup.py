"""How loops of the worker sleep until there is something to do."""

from __future__ import annotations

import asyncio


async def heard(news: asyncio.Event, seconds: float) -> None:
    """Wait for news, at most so many seconds."""
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except TimeoutError:
        return
