"""The ports of the worker with faults: each attempt of an outbox entry may fail or be killed at a named moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from enum import StrEnum
from typing import Any
from uuid import UUID

from behaviour.order.support.interleaved import Interleaved
from behaviour.order.support.service import Service

from chassis.errors import RpcError, unavailable
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from order_service.commands import Commands
from order_service.worker.outbox import Outbox, OutboxEntry
from order_service.worker.process_manager import ProcessManager
from order_service.worker.user_credit import CreditDenied, FakeUserCredit


class Killed(BaseException):
    """The worker was killed at this point: none of its error handlers runs."""


class Fault(StrEnum):
    """The fault of an attempt."""

    NONE = "it succeeds"
    CALL_FAILS = "the call fails"
    KILLED_BEFORE_CALL = "killed before the call"
    ANSWER_LOST = "the call succeeds, its answer is lost"
    CALL_LATE = "the call times out and arrives later"
    KILLED_DURING_CALL = "killed, and the call arrives later"
    KILLED_AFTER_CALL = "killed after the call, before its event is appended"
    APPEND_FAILS = "its event cannot be appended"
    KILLED_AFTER_APPEND = "killed after its event was appended, before it is completed"
    COMPLETE_FAILS = "it cannot be completed"
    KILLED_AFTER_COMPLETE = "killed after it was completed"


current_fault: ContextVar[Fault] = ContextVar("current_fault", default=Fault.NONE)


def outage() -> RpcError:
    return unavailable("DATABASE_UNAVAILABLE", "an injected fault", 1)


class UnreliableUserCredit:
    """The port `UserCredit`; calls in `late` arrive when the test calls `arrive`."""

    def __init__(self, user_credit: FakeUserCredit, rng: random.Random) -> None:
        self._user_credit = user_credit
        self._rng = rng
        self.late: list[Callable[[], Awaitable[None]]] = []

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        await self._call(lambda: self._user_credit.reserve(order_id, user_id, currency, amount))

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        await self._call(lambda: self._user_credit.release(order_id, user_id))

    async def arrive(self) -> None:
        """Executes the late calls in a random sequence."""
        arriving, self.late = self.late, []
        self._rng.shuffle(arriving)
        for call in arriving:
            await _ignore_answer(call)

    async def _call(self, call: Callable[[], Awaitable[None]]) -> None:
        await _yield_to_others(self._rng)
        match current_fault.get():
            case Fault.CALL_FAILS:
                raise outage()
            case Fault.KILLED_BEFORE_CALL:
                raise Killed
            case Fault.ANSWER_LOST:
                await _ignore_answer(call)
                raise outage()
            case Fault.CALL_LATE:
                self.late.append(call)
                raise outage()
            case Fault.KILLED_DURING_CALL:
                self.late.append(call)
                raise Killed
            case Fault.KILLED_AFTER_CALL:
                await _ignore_answer(call)
                raise Killed
        await call()
        await _yield_to_others(self._rng)


class UnreliableLog(Interleaved):
    """The event log of the worker."""

    def __init__(self, log: EventLog, rng: random.Random) -> None:
        super().__init__(log, rng)

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        if current_fault.get() is Fault.APPEND_FAILS:
            raise outage()
        await super().append(stream, expected_version, events, **extra)
        if current_fault.get() is Fault.KILLED_AFTER_APPEND:
            raise Killed


class UnreliableOutbox:
    """The port `Outbox`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def claim(self, limit: int, seconds: float) -> list[OutboxEntry]:
        return await self._outbox.claim(limit, seconds)

    async def take_over(self) -> int:
        return await self._outbox.take_over()

    async def complete(self, entry: OutboxEntry) -> None:
        if current_fault.get() is Fault.COMPLETE_FAILS:
            raise outage()
        await self._outbox.complete(entry)
        if current_fault.get() is Fault.KILLED_AFTER_COMPLETE:
            raise Killed

    async def postpone(self, entry: OutboxEntry, seconds: float) -> None:
        await self._outbox.postpone(entry, seconds)


class Worker:
    """The process manager of a service, with a fault in each of its attempts."""

    def __init__(self, service: Service, rng: random.Random, kind: type[ProcessManager] = ProcessManager) -> None:
        log = UnreliableLog(service.store, rng)
        self.user_credit = UnreliableUserCredit(service.user_credit, rng)
        commands = Commands(log, service.keys, service.settings)
        outbox = UnreliableOutbox(service.outbox)
        self._process_manager = kind(outbox, log, commands, self.user_credit, service.settings)

    async def attempt(self, entry: OutboxEntry, fault: Fault) -> None:
        """Attempts the entry in this task until it is completed or postponed, or the worker is killed."""
        current_fault.set(fault)
        try:
            await self._process_manager.attempt(entry)
        except Killed:
            return


async def _ignore_answer(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except (CreditDenied, RpcError):
        return


async def _yield_to_others(rng: random.Random) -> None:
    for _ in range(rng.randrange(3)):
        await asyncio.sleep(0)
