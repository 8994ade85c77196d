"""The Order Service and its worker without gRPC, on a storage and a fake of the User Service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from chassis.events.port import EventLog
from chassis.settings import Live
from order_service.commands import Commands
from order_service.domain import Line, Order
from order_service.queries import Queries, ReadTable
from order_service.settings import Settings
from order_service.storage.idempotency_keys import IdempotencyKeys
from order_service.worker.outbox import Kind, Outbox
from order_service.worker.process_manager import ProcessManager
from order_service.worker.user_credit import FakeUserCredit

KV = Path(__file__).parents[4] / "consul" / "kv" / "config" / "order-service.json"
SHIPPED: dict[str, Any] = json.loads(KV.read_text())
ADA, EVE = UUID(int=1), UUID(int=2)
TEA = Line("tea-1", 2, 150)

SettingsFactory = Callable[..., Settings]


def shipped(**changes: Any) -> Settings:
    """Returns the settings as shipped, with changes."""
    return Settings.model_validate({**SHIPPED, **changes})


class Storage(Protocol):
    """The ports of the service on one kind of storage, with the operations that tests need."""

    store: EventLog
    keys: IdempotencyKeys
    outbox: Outbox
    table: ReadTable

    async def project(self) -> None:
        """Brings the projections up to date with the events."""

    async def add_entry(self, order_id: UUID, kind: Kind) -> None:
        """Adds an outbox entry that no event has caused."""

    async def pending_entries(self) -> int:
        """Returns the number of outbox entries that are not complete."""

    async def pass_time(self) -> None:
        """Makes every pending outbox entry due, as if all claims and pauses had ended."""

    async def expire_keys(self, left: float = -1.0) -> None:
        """Lets every idempotency key expire in `left` seconds; by default it has expired."""


class Service:
    """The service and its worker; a test may replace the value of `settings` while they run."""

    def __init__(self, settings: Settings, storage: Storage, user_credit: FakeUserCredit | None = None) -> None:
        self.settings = Live(settings)
        self.storage = storage
        self.store, self.keys, self.outbox = storage.store, storage.keys, storage.outbox
        self.user_credit = user_credit or FakeUserCredit()
        self.commands = Commands(self.store, self.keys, self.settings)
        self.queries = Queries(self.store, storage.table)
        self.process_manager = ProcessManager(self.outbox, self.store, self.commands, self.user_credit, self.settings)

    async def place(self, key: str = "k1", user_id: UUID = ADA, *lines: Line) -> Order:
        return await self.commands.place_order(user_id, key, "EUR", lines or (TEA,))

    async def project(self) -> None:
        """Brings the projections up to date with the events."""
        await self.storage.project()

    async def work(self) -> None:
        """Brings the projections up to date, then attempts every due outbox entry once."""
        await self.project()
        claimed = await self.outbox.claim(1000, self.settings.value.outbox_attempt_seconds)
        await asyncio.gather(*(self.process_manager.attempt(entry) for entry in claimed))

    async def types(self, order_id: UUID) -> list[str]:
        return [event.type for event in await self.store.read(order_id)]
