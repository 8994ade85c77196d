"""The ports of the worker with a fate: each attempt of an errand may fail or die at a named moment."""

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
from order_service.worker.outbox import Errand, Errands
from order_service.worker.process_manager import Fulfilment
from order_service.worker.user_credit import CreditRefused, FakeUsers


class Killed(BaseException):
    """The worker is gone in this instant: no handler of it runs any more."""


class Fate(StrEnum):
    """What becomes of one attempt."""

    FINE = "nothing happens to it"
    AWAY = "the call fails"
    KILLED_BEFORE_CALL = "killed before the call"
    LOST = "the call is answered, the answer is lost"
    LATE = "the call is given up and arrives later"
    KILLED_DURING_CALL = "killed, and the call arrives later"
    KILLED_AFTER_CALL = "killed after the call, before it is recorded"
    STORE_AWAY = "it cannot be recorded"
    KILLED_AFTER_RECORDING = "killed after it was recorded, before it is finished"
    FINISH_FAILS = "it cannot be finished"
    KILLED_AFTER_FINISH = "killed after it was finished"


fate: ContextVar[Fate] = ContextVar("fate", default=Fate.FINE)


def away() -> RpcError:
    return unavailable("AWAY", "away", 1)


class UnreliableUsers:
    """The port `Users`; what is `late` arrives when the test says so."""

    def __init__(self, users: FakeUsers, luck: random.Random) -> None:
        self._users = users
        self._luck = luck
        self.late: list[Callable[[], Awaitable[None]]] = []

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        await self._call(lambda: self._users.reserve(order_id, user_id, currency, amount))

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        await self._call(lambda: self._users.release(order_id, user_id))

    async def arrive(self) -> None:
        """What is late is done, in any sequence."""
        arriving, self.late = self.late, []
        self._luck.shuffle(arriving)
        for call in arriving:
            await _unheard(call)

    async def _call(self, call: Callable[[], Awaitable[None]]) -> None:
        await _give_way(self._luck)
        match fate.get():
            case Fate.AWAY:
                raise away()
            case Fate.KILLED_BEFORE_CALL:
                raise Killed
            case Fate.LOST:
                await _unheard(call)
                raise away()
            case Fate.LATE:
                self.late.append(call)
                raise away()
            case Fate.KILLED_DURING_CALL:
                self.late.append(call)
                raise Killed
            case Fate.KILLED_AFTER_CALL:
                await _unheard(call)
                raise Killed
        await call()
        await _give_way(self._luck)


class UnreliableLog(Interleaved):
    """The event log as the worker has it."""

    def __init__(self, log: EventLog, luck: random.Random) -> None:
        super().__init__(log, luck)

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        if fate.get() is Fate.STORE_AWAY:
            raise away()
        await super().append(stream, expected_version, events, **extra)
        if fate.get() is Fate.KILLED_AFTER_RECORDING:
            raise Killed


class UnreliableErrands:
    """The port `Errands`."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    async def claim(self, limit: int, seconds: float) -> list[Errand]:
        return await self._errands.claim(limit, seconds)

    async def take_over(self) -> int:
        return await self._errands.take_over()

    async def finish(self, errand: Errand) -> None:
        if fate.get() is Fate.FINISH_FAILS:
            raise away()
        await self._errands.finish(errand)
        if fate.get() is Fate.KILLED_AFTER_FINISH:
            raise Killed

    async def postpone(self, errand: Errand, seconds: float) -> None:
        await self._errands.postpone(errand, seconds)


class Worker:
    """The process manager of a service, each of its attempts with a fate."""

    def __init__(self, service: Service, luck: random.Random, kind: type[Fulfilment] = Fulfilment) -> None:
        log = UnreliableLog(service.store, luck)
        self.users = UnreliableUsers(service.users, luck)
        commands = Commands(log, service.keys, lambda: service.settings)
        errands = UnreliableErrands(service.errands)
        self._fulfilment = kind(errands, log, commands, self.users, lambda: service.settings)

    async def attempt(self, errand: Errand, drawn: Fate) -> None:
        """Try the errand in this task until it is done, postponed, or the worker dead."""
        fate.set(drawn)
        try:
            await self._fulfilment.attempt(errand)
        except Killed:
            return


async def _unheard(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except (CreditRefused, RpcError):
        return


async def _give_way(luck: random.Random) -> None:
    for _ in range(luck.randrange(3)):
        await asyncio.sleep(0)
