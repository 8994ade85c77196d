"""Runs a request once for all concurrent callers; a failure counts for all until its backoff is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

from chassis.backoff import backoff

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Shares each run of `work` among its callers.

    After a failed run every call raises the same error without a new run, for a delay that grows up to `longest`
    seconds. A successful run is not kept: the next call starts another one.
    """

    def __init__(self, work: Callable[[], Awaitable[T]], first: float, longest: float) -> None:
        self._work = work
        self._limits = first, longest
        self._delays = backoff(*self._limits)
        self._current: asyncio.Task[T] | None = None
        self._failed_until = 0.0

    async def __call__(self) -> T:
        """Returns the result of the run in progress, or of a new one. Raises what `work` raised."""
        if self._current is None or (self._current.done() and time.monotonic() >= self._failed_until):
            # In an empty context and shielded: the deadline of one caller must not end the run of the others.
            self._current = asyncio.create_task(self._run(), context=Context())
            self._current.add_done_callback(_retrieve)
        return await asyncio.shield(self._current)

    async def _run(self) -> T:
        try:
            result = await self._work()
        except Exception:
            self._failed_until = time.monotonic() + next(self._delays)
            raise
        self._failed_until, self._delays = 0.0, backoff(*self._limits)
        return result


def _retrieve(task: asyncio.Task[T]) -> None:
    """Marks the error as seen: asyncio logs an error that no caller has waited for."""
    if not task.cancelled():
        task.exception()
