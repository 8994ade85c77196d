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

from opentelemetry import trace

from chassis import deadline
from chassis.errors import RpcError, unavailable

T = TypeVar("T")
R = TypeVar("R")

# For the answer to a cancellation, once the time of a batch is over.
_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Call(Generic[T, R]):
    item: T
    result: asyncio.Future[R]
    context: Context


class Batcher(Generic[T, R]):
    """Runs `work(items)`, which returns a result for each item, or an exception that the caller of the item gets.

    A batch has `seconds` of its own, whatever the deadlines of its calls, and is in the first trace that is recorded.
    It is cancelled when all of its callers have been cancelled.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Coroutine[Any, Any, Sequence[R | Exception]]], most: int, seconds: float
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._most = most
        self._waiting: list[_Call[T, R]] = []
        self._running: asyncio.Task[None] | None = None
        self._left_alone: set[asyncio.Task[Any]] = set()

    async def submit(self, item: T) -> R:
        """Returns the result of an item, or raises its exception. The batch goes on for others if this is cancelled."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(item, result, copy_context()))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), context=Context())
        return await result

    async def _run(self) -> None:
        batch: Sequence[_Call[T, R]] = ()
        try:
            while batch := self._next():
                context = next((call.context for call in batch if call.context.run(_is_recorded)), batch[0].context)
                context.run(deadline.replace, self._seconds)
                task = asyncio.create_task(self._work([call.item for call in batch]), context=context)
                _cancel_without_callers(task, batch)
                for call, outcome in zip(batch, await self._outcomes(task, len(batch)), strict=True):
                    _resolve(call.result, outcome)
        finally:
            for call in (*batch, *self._waiting):  # only if this was cancelled
                _resolve(call.result, _ended("the process is stopping"))

    async def _outcomes(self, task: asyncio.Task[Sequence[R | Exception]], calls: int) -> Sequence[R | Exception]:
        """Returns the results of a batch; one that does not end in time is left alone, and the next one begins."""
        done, _ = await asyncio.wait({task}, timeout=self._seconds + _GRACE_SECONDS)
        if not done:
            task.cancel()
            self._left_alone.add(task)
            task.add_done_callback(self._left_alone.discard)
            return [_ended("it did not end in time")] * calls
        if task.cancelled():  # something that the work waited for was, or all callers were
            return [_ended("ended from within")] * calls
        error = task.exception()
        if isinstance(error, Exception):
            return [error] * calls
        return task.result()

    def _next(self) -> Sequence[_Call[T, R]]:
        """Takes the next calls whose callers still wait."""
        waiting = [call for call in self._waiting if not call.result.done()]
        batch, self._waiting = waiting[: self._most], waiting[self._most :]
        return batch


def _ended(message: str) -> RpcError:
    return unavailable("UNAVAILABLE", message, 1.0)


def _is_recorded() -> bool:
    return trace.get_current_span().is_recording()


def _cancel_without_callers(task: asyncio.Task[Any], batch: Sequence[_Call[Any, Any]]) -> None:
    callers = len(batch)

    def left(_: asyncio.Future[Any]) -> None:
        nonlocal callers
        callers -= 1
        if not callers:
            task.cancel()

    for call in batch:
        call.result.add_done_callback(left)


def _resolve(result: asyncio.Future[R], outcome: R | Exception) -> None:
    if result.done():  # its caller was cancelled
        return
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
