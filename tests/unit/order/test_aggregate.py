"""Any sequence of commands on orders has the result of the model; a planted bug is found."""

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


def test_orders_equal_their_model() -> None:
    drive(Orders, examples=60, steps=30)


class NoVersions(MemoryEventStore):
    """Accepts every append, at any expected version."""

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        at = len(await self.read(stream))
        moved = [replace(event, version=at + number) for number, event in enumerate(events, 1)]
        await super().append(stream, at, moved, **extra)


class NoKeys(MemoryIdempotencyKeys):
    """Stores keys but never finds one in use."""

    def insert_key(self, _: object, __: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        if "key" in extra:
            key: IdempotencyKey = extra["key"]
            self._keys[key.user_id, key.key] = key


class Without(MemoryStorage):
    """A storage without one of its safeguards."""

    def __init__(self, safeguard: str) -> None:
        super().__init__()
        if safeguard == "keys":
            self.keys = NoKeys()
        kind = NoVersions if safeguard == "versions" else MemoryEventStore
        self.store = kind(write_rows=self.keys.insert_key)
        self.table._store = self.store


@pytest.mark.parametrize("safeguard", ["versions", "keys"])
def test_orders_without_a_defence_are_found_out(safeguard: str) -> None:
    class Broken(Orders):
        def open(self) -> Storage:
            super().open()
            return Without(safeguard)

    must_fail(Broken, examples=200, steps=30)
