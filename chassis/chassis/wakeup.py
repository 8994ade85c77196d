"""Waits for an event that wakes a loop, at most for a time, and wakes it when it has to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


async def wait(wakeup: asyncio.Event, longest: float) -> None:
    """Waits until the wake-up event is set, at most `longest` seconds."""
    try:
        async with asyncio.timeout(longest):
            await wakeup.wait()
    except TimeoutError:
        return


@contextmanager
def set_when(stopping: asyncio.Event, wakeup: asyncio.Event) -> Iterator[None]:
    """Sets the wake-up event as soon as `stopping` is set, while the block runs."""

    async def follow() -> None:
        await stopping.wait()
        wakeup.set()

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        following.cancel()
