"""A rebuild at its edges: a shadow that differs is refused, a long reader holds nobody up, only one alone goes on."""

from __future__ import annotations

import asyncio
import time

import pytest
from behaviour.order.support.service import ADA, Service, shipped
from behaviour.order.support.storages import PostgresStorage
from support.postgres.private_postgres import Postgres

from order_service.operations.rebuild import Rebuild, Refused


@pytest.fixture
def storage(service: Service, postgres: Postgres, tables: str) -> PostgresStorage:
    assert isinstance(service.storage, PostgresStorage)
    postgres.execute(f"GRANT CREATE ON DATABASE {tables} TO {tables}")
    return service.storage


async def _alone() -> None:
    """Nobody else rebuilds."""


async def listed(service: Service) -> list[object]:
    return list((await service.queries.list_orders(ADA, None, None, 100)).orders)


class Damaged(Rebuild):
    """One whose shadow comes out wrong."""

    async def _follow(self) -> int:
        position = await super()._follow()
        async with self._database.connection() as connection:
            await connection.execute("UPDATE rebuild_orders.orders SET total = total + 1")
        return position


async def test_a_shadow_that_differs_from_the_events_does_not_take_the_place_of_the_table(
    service: Service, storage: PostgresStorage
) -> None:
    for number in range(3):
        await service.place(f"k{number}")
    await storage.project()
    before = await listed(service)
    with pytest.raises(Refused, match="differs from the events in 3 orders"):
        await Damaged(storage.world.database, storage.store, shipped, _alone).run()
    assert await listed(service) == before


async def test_beside_a_long_reader_lists_are_read_at_once_and_the_rebuild_waits(
    service: Service, storage: PostgresStorage
) -> None:
    await service.place()
    await storage.project()
    before, slowest = await listed(service), 0.0
    rebuild = Rebuild(storage.world.database, storage.store, shipped, _alone)
    async with storage.world.database.connection() as reader:
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
    # The longest wait for the table is a tenth of a second; the rest is for a machine that is busy.
    assert slowest < 1.0


async def test_one_that_is_no_longer_alone_changes_nothing(service: Service, storage: PostgresStorage) -> None:
    async def another() -> None:
        raise Refused("another rebuild may have begun")

    await service.place()
    await storage.project()
    before = await listed(service)
    with pytest.raises(Refused, match="another"):
        await Rebuild(storage.world.database, storage.store, shipped, another).run()
    assert await listed(service) == before
