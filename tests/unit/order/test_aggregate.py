"""Any sequence of commands on orders gives what the model says; a planted bug is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from behaviour.order.aggregate import Orders
from behaviour.order.support.service import Storage
from behaviour.order.support.storages import MemoryStorage
from behaviour.state_machines import drive, must_fail

from chassis.events.memory import MemoryEventStore
from chassis.events.record import RecordedEvent
from order_service.storage.idempotency_keys import IdempotencyKey, MemoryIdempotencyKeys


def test_orders_do_what_the_model_says() -> None:
    drive(Orders, examples=60, steps=30)


class NoVersions(MemoryEventStore):
    """Takes every append, whatever version it was decided on."""

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        at = len(await self.read(stream))
        moved = [replace(event, version=at + number) for number, event in enumerate(events, 1)]
        await super().append(stream, at, moved, **extra)


class NoKeys(MemoryIdempotencyKeys):
    """Keeps keys but never finds one in use."""

    def keep(self, _: object, __: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        if "key" in extra:
            key: IdempotencyKey = extra["key"]
            self._keys[key.user_id, key.key] = key


class Without(MemoryStorage):
    """Storage without one of its defences."""

    def __init__(self, defence: str) -> None:
        super().__init__()
        if defence == "keys":
            self.keys = NoKeys()
        kind = NoVersions if defence == "versions" else MemoryEventStore
        self.store = kind(write_rows=self.keys.keep)
        self.table._store = self.store


@pytest.mark.parametrize("defence", ["versions", "keys"])
def test_orders_without_a_defence_are_found_out(defence: str) -> None:
    class Broken(Orders):
        def open(self) -> Storage:
            super().open()
            return Without(defence)

    must_fail(Broken, examples=200, steps=30)
