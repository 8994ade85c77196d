"""Bulkhead: limits the concurrent calls to one service, so that a slow service cannot occupy the whole process.

Invariant: permits in use never exceed the limit, except after it was lowered, until enough calls end. Waiting calls get
permits in the order in which they arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque

import grpc

from chassis.calls.client_settings import ClientSettings
from chassis.errors import RpcError
from chassis.settings import Live

# Long enough for a short burst, too short to add up to a queue in front of a slow service.
WAIT_SECONDS = 0.05
_RETRY_AFTER_SECONDS = 1.0


class Bulkhead:
    """Permits for calls: `await acquire(timeout)` before the call, `release()` however it ends."""

    def __init__(self, name: str, settings: Live[ClientSettings], wait_seconds: float = WAIT_SECONDS) -> None:
        self.name = name
        self.in_use = 0
        self.rejected = 0
        self._settings = settings
        self._wait_seconds = wait_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """True if no call has a permit or waits for one."""
        return not self.in_use and not self._waiting

    async def acquire(self, timeout: float) -> None:  # noqa: ASYNC109
        """Takes a permit; raises RpcError(RESOURCE_EXHAUSTED, BULKHEAD_FULL) if none becomes free in time."""
        if self.in_use < self._settings.value.calls_at_once and not self._waiting:
            self.in_use += 1
            return
        permit = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            await asyncio.wait({permit}, timeout=min(timeout, self._wait_seconds))
        except asyncio.CancelledError:
            self._stop_waiting(permit)
            raise
        if not permit.done():
            self._stop_waiting(permit)
            self.rejected += 1
            raise _full(self.name)

    def release(self) -> None:
        """Gives a permit back; the call that has waited longest gets it."""
        self.in_use -= 1
        while self._waiting and self.in_use < self._settings.value.calls_at_once:
            self.in_use += 1
            self._waiting.popleft().set_result(None)

    def _stop_waiting(self, permit: asyncio.Future[None]) -> None:
        if permit.done():
            self.release()
        else:
            self._waiting.remove(permit)


def _full(name: str) -> RpcError:
    message = f"too many concurrent calls to {name}"
    return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "BULKHEAD_FULL", message, retry_after=_RETRY_AFTER_SECONDS)
