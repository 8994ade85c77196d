"""Waits until a named condition is true, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(what: str, condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """Return once the condition is true. Fails with its name if that takes longer than `seconds`."""
    ends_at = time.monotonic() + seconds
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < ends_at, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


async def accepts(address: str) -> bool:
    """Return whether a connection to host:port is accepted."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True
