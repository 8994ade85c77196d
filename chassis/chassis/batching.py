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

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Call(Generic[T, R]):
    item: T
    result: asyncio.Future[R]
    context: Context


class Batcher(Generic[T, R]):
    """Runs `work(items)`, which returns a result for each item, or an exception that the caller of the item gets.

    A batch has the deadline and the trace of its first call, so all calls should have about the same deadline.
    """

    def __init__(self, work: Callable[[Sequence[T]], Coroutine[Any, Any, Sequence[R | Exception]]], most: int) -> None:
        self._work = work
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
            work = self._work([call.item for call in batch])
            try:
                found = await asyncio.create_task(work, context=batch[0].context)
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
