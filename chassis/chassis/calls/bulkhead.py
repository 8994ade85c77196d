"""A wall around what one dependency may take of this process: so many calls at once, a short wait, then a refusal.

Invariant: places given out never exceed the limit (a lowered one is reached as calls end), and first come is first in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import grpc
from pydantic import Field

from chassis.errors import RpcError
from chassis.settings import Section


class BulkheadSettings(Section):
    """How much of this process calls to one dependency may hold."""

    calls_at_once: int = Field(ge=1, le=100_000, description="calls under way; more wait, then are refused")
    wait_seconds: float = Field(ge=0, le=10, description="longest wait for a place")


class Bulkhead:
    """Places for calls: `await enter(left)`, and `leave()` however the call ends."""

    def __init__(self, name: str, settings: Callable[[], BulkheadSettings]) -> None:
        self.name = name
        self.taken = 0
        self.refused = 0
        self._settings = settings
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, left: float) -> None:
        """Take a place; raises RpcError(RESOURCE_EXHAUSTED, BULKHEAD_FULL) when none gets free in time."""
        settings = self._settings()
        if self.taken < settings.calls_at_once and not self._waiting:
            self.taken += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.wait({place}, timeout=min(left, settings.wait_seconds))
        except asyncio.CancelledError:
            self._gone(place)
            raise
        if not place.done():
            self._gone(place)
            self.refused += 1
            raise _full(self.name)

    def leave(self) -> None:
        """Give the place back, to whoever waits longest."""
        self.taken -= 1
        while self._waiting and self.taken < self._settings().calls_at_once:
            self.taken += 1
            self._waiting.popleft().set_result(None)

    def _gone(self, place: asyncio.Future[None]) -> None:
        if place.done():
            self.leave()
        else:
            self._waiting.remove(place)


def _full(name: str) -> RpcError:
    message = f"too many calls to {name} at once"
    return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "BULKHEAD_FULL", message, retry_after=1.0)
