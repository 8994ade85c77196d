"""The Order Service and its worker without the wire, on whatever storage, beside a fake User Service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from chassis.events.port import EventLog
from order_service.commands import Commands
from order_service.domain import Line, Order
from order_service.queries import Queries, ReadTable
from order_service.settings import Settings
from order_service.storage.idempotency_keys import Keys
from order_service.worker.outbox import Errands, Kind
from order_service.worker.process_manager import Fulfilment
from order_service.worker.user_credit import FakeUsers

KV = Path(__file__).parents[4] / "consul" / "kv" / "config" / "order-service.json"
SHIPPED: dict[str, Any] = json.loads(KV.read_text())
ADA, EVE = UUID(int=1), UUID(int=2)
TEA = Line("tea-1", 2, 150)

SettingsFactory = Callable[..., Settings]


def shipped(**changes: Any) -> Settings:
    """Settings as shipped, with changes."""
    return Settings.model_validate({**SHIPPED, **changes})


class Storage(Protocol):
    """The ports of the service on one kind of storage, and what a test must be able to do to it."""

    store: EventLog
    keys: Keys
    errands: Errands
    table: ReadTable

    async def project(self) -> None:
        """Bring the projections up to date with the events."""

    async def owe(self, order_id: UUID, kind: Kind) -> None:
        """Owe an errand, whatever the events say."""

    async def open_errands(self) -> int:
        """How many errands are not done."""

    async def pass_time(self) -> None:
        """Every open errand is due, as if all claims and pauses were over."""

    async def expire_keys(self, left: float = -1.0) -> None:
        """Every idempotency key is past its time, or has so many seconds left."""


class Service:
    """The service and its worker; a test may replace `settings` and `users` while they run."""

    def __init__(self, settings: Settings, storage: Storage, users: FakeUsers | None = None) -> None:
        self.settings = settings
        self.storage = storage
        self.store, self.keys, self.errands = storage.store, storage.keys, storage.errands
        self.users = users or FakeUsers()
        self.commands = Commands(self.store, self.keys, lambda: self.settings)
        self.queries = Queries(self.store, storage.table)
        self.fulfilment = Fulfilment(self.errands, self.store, self.commands, self.users, lambda: self.settings)

    async def place(self, key: str = "k1", user_id: UUID = ADA, *lines: Line) -> Order:
        return await self.commands.place_order(user_id, key, "EUR", lines or (TEA,))

    async def owe(self) -> None:
        """What the projections do with the events there are."""
        await self.storage.project()

    async def work(self) -> None:
        """Try every errand that is due once."""
        await self.owe()
        claimed = await self.errands.claim(1000, self.settings.errand_seconds)
        await asyncio.gather(*(self.fulfilment.attempt(errand) for errand in claimed))

    async def types(self, order_id: UUID) -> list[str]:
        return [event.type for event in await self.store.read(order_id)]
