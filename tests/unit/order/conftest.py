"""The Order Service's use cases on memory, beside a fake User Service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from chassis.eventstore import MemoryEventStore
from chassis.testing import process
from order_service.commands import Commands
from order_service.domain import Line, Order
from order_service.errands import KINDS, MemoryErrands
from order_service.fulfilment import Fulfilment
from order_service.keys import MemoryKeys
from order_service.queries import MemoryTable, Queries
from order_service.settings import Settings
from order_service.users import FakeUsers
from order_service.watching import Watchers

KV = Path(__file__).parents[3] / "consul" / "kv" / "config" / "order-service.json"
SHIPPED: dict[str, Any] = json.loads(KV.read_text())
ADA, EVE = UUID(int=1), UUID(int=2)
TEA = Line("tea-1", 2, 150)

Knobs = Callable[..., Settings]


class Service:
    """The service and its worker without wire and database; `owe` does what the projection of errands does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = MemoryKeys()
        self.store = MemoryEventStore(within=self.keys.keep)
        self.users = FakeUsers()
        self.errands = MemoryErrands()
        self.commands = Commands(self.store, self.keys, lambda: self.settings)
        self.queries = Queries(self.store, MemoryTable(self.store))
        self.process = process("order-service", settings)
        self.watchers = Watchers(self.process, self.store, self.queries, backlog=1)
        self.fulfilment = Fulfilment(self.errands, self.store, self.commands, self.users, lambda: self.settings)
        self._position = 0

    async def place(self, key: str = "k1", user_id: UUID = ADA, *lines: Line) -> Order:
        return await self.commands.place_order(user_id, key, "EUR", lines or (TEA,))

    async def owe(self) -> None:
        for position, event in await self.store.since(self._position):
            self._position = position
            if kind := KINDS.get(event.type):
                self.errands.add(event.stream, kind, event.meta["traceparent"])

    async def work(self) -> None:
        """Try every errand that is due once."""
        await self.owe()
        claimed = await self.errands.claim(1000, 1)
        await asyncio.gather(*(self.fulfilment.attempt(errand) for errand in claimed))

    async def types(self, order_id: UUID) -> list[str]:
        return [event.type for event in await self.store.read(order_id)]


@pytest.fixture
def knobs() -> Knobs:
    """Settings as shipped, with changes."""
    return lambda **changes: Settings.model_validate({**SHIPPED, **changes})


@pytest.fixture
async def service(knobs: Knobs) -> AsyncIterator[Service]:
    made = Service(knobs())
    yield made
    await made.process.close()
