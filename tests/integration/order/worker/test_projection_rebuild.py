"""A rebuild rejects a shadow that differs, blocks no reader, and changes nothing beside another rebuild."""

from __future__ import annotations

import asyncio
import time

import pytest
from behaviour.order.support.service import ADA, Service, shipped
from behaviour.order.support.storages import PostgresStorage
from support.postgres.private_postgres import Postgres

from chassis.settings import Live
from order_service.operations.projection_rebuild import Rebuild, RebuildRejected


@pytest.fixture
def storage(service: Service, postgres: Postgres, tables: str) -> PostgresStorage:
    assert isinstance(service.storage, PostgresStorage)
    postgres.execute(f"GRANT CREATE ON DATABASE {tables} TO {tables}")
    return service.storage


async def _exclusive() -> None:
    """No other rebuild has started."""


async def listed(service: Service) -> list[object]:
    return list((await service.queries.list_orders(ADA, None, None, 100)).orders)


class Damaged(Rebuild):
    """A rebuild whose shadow is wrong."""

    async def _fill_shadow(self) -> int:
        position = await super()._fill_shadow()
        async with self._database.connection() as connection:
            await connection.execute("UPDATE rebuild_orders.orders SET total = total + 1")
        return position


async def test_a_shadow_that_differs_from_the_events_does_not_replace_the_table(
    service: Service, storage: PostgresStorage
) -> None:
    for number in range(3):
        await service.place(f"k{number}")
    await storage.project()
    before = await listed(service)
    with pytest.raises(RebuildRejected, match="differs from the events in 3 orders"):
        await Damaged(storage.database, storage.store, Live(shipped()), _exclusive).run()
    assert await listed(service) == before


async def test_during_a_long_transaction_of_a_reader_lists_are_read_at_once_and_the_rebuild_waits(
    service: Service, storage: PostgresStorage
) -> None:
    await service.place()
    await storage.project()
    before, slowest = await listed(service), 0.0
    rebuild = Rebuild(storage.database, storage.store, Live(shipped()), _exclusive)
    async with storage.database.connection() as reader:
        await reader.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await reader.execute("SELECT count(*) FROM orders")
        running = asyncio.create_task(rebuild.run())
        ends_at = time.monotonic() + 3
        while time.monotonic() < ends_at:
            began = time.monotonic()
            assert await listed(service) == before
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.02)
        assert not running.done()
    await running
    assert await listed(service) == before
    # The rebuild waits at most a tenth of a second for the table; the rest is a margin for a busy machine.
    assert slowest < 1.0


async def test_a_rebuild_beside_another_one_changes_nothing(service: Service, storage: PostgresStorage) -> None:
    async def another() -> None:
        raise RebuildRejected("another rebuild may have begun")

    await service.place()
    await storage.project()
    before = await listed(service)
    with pytest.raises(RebuildRejected, match="another"):
        await Rebuild(storage.database, storage.store, Live(shipped()), another).run()
    assert await listed(service) == before
