"""Waiting on a named condition, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(what: str, condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return once the condition holds; fail by its name when it does not within `seconds`."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
