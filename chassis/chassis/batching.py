"""Joins concurrent calls into batches: those that arrive while a batch is in progress form the next one.

Invariant: batches run one after the other, and a call waits for nothing but the batch in progress and its own. So a
single call is not delayed, and under load the cost of a batch is shared by many calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from chassis import deadline
from chassis.errors import is_cancelled, unavailable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Call(Generic[T, R]):
    item: T
    result: asyncio.Future[R]
    context: Context


class Batcher(Generic[T, R]):
    """Runs `work(items)`, which returns a result for each item, or an exception that the caller of the item gets.

    A batch has `seconds` of its own, whatever the deadlines of its calls, and is in the trace of the first one.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Coroutine[Any, Any, Sequence[R | Exception]]], most: int, seconds: float
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._most = most
        self._waiting: list[_Call[T, R]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Returns the result of an item, or raises its exception. The batch goes on if this caller is cancelled."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(item, result, copy_context()))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), context=Context())
        return await result

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            work, context = self._work([call.item for call in batch]), batch[0].context
            context.run(deadline.replace, self._seconds)
            try:
                found = await asyncio.create_task(work, context=context)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                # Something that the work waited for was cancelled.
                found = [unavailable("UNAVAILABLE", "ended from within", 1.0)] * len(batch)
            except Exception as error:
                found = [error] * len(batch)
            for call, outcome in zip(batch, found, strict=True):
                _resolve(call.result, outcome)


def _resolve(result: asyncio.Future[R], outcome: R | Exception) -> None:
    if result.done():  # its caller was cancelled
        return
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
