"""A rebuild rejects a shadow that differs, blocks nobody, ends while orders are placed, and runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from behaviour.order.support.service import ADA, TEA, Service, shipped
from behaviour.order.support.storages import PostgresStorage

from chassis.events.record import RecordedEvent
from chassis.settings import Live
from order_service import domain
from order_service.operations.projection_check import Connection
from order_service.operations.projection_rebuild import Rebuild, RebuildRejected, exclusive_session
from order_service.storage import event_codec
from order_service.storage.event_codec import Cause


@pytest.fixture
def storage(service: Service) -> PostgresStorage:
    assert isinstance(service.storage, PostgresStorage)
    return service.storage


@pytest.fixture
async def session(storage: PostgresStorage) -> AsyncIterator[Connection]:
    async with exclusive_session(storage.database) as opened:
        yield opened


def rebuild_in(session: Connection, storage: PostgresStorage, kind: type[Rebuild] = Rebuild) -> Rebuild:
    return kind(session, storage.database.name, storage.store, Live(shipped()))


async def listed(service: Service) -> list[object]:
    return list((await service.queries.list_orders(ADA, None, None, 100)).orders)


async def place_some(service: Service, storage: PostgresStorage) -> list[object]:
    for number in range(3):
        await service.place(f"k{number}")
    await storage.project()
    return await listed(service)


class Damaged(Rebuild):
    """A rebuild whose shadow is wrong."""

    async def _fill_shadow(self) -> int:
        position = await super()._fill_shadow()
        await self._session.execute("UPDATE pg_temp.orders SET total = total + 1")
        return position


async def test_a_shadow_that_differs_from_the_events_does_not_replace_the_table(
    service: Service, storage: PostgresStorage, session: Connection
) -> None:
    before = await place_some(service, storage)
    with pytest.raises(RebuildRejected, match="differs from the events in 3 orders"):
        await rebuild_in(session, storage, Damaged).run()
    assert await listed(service) == before


async def test_missing_changed_and_invented_rows_are_repaired_and_right_ones_are_not_written(
    service: Service, storage: PostgresStorage, session: Connection
) -> None:
    before = await place_some(service, storage)
    first, second, _ = (order_id for (order_id,) in await rows(storage, "SELECT id FROM orders ORDER BY id"))
    written = "SELECT xmin::text FROM orders WHERE id > %s"
    untouched = await rows(storage, written, second)
    await storage._execute("DELETE FROM orders WHERE id = %s", first)
    await storage._execute("UPDATE orders SET lines = '[]', total = 1 WHERE id = %s", second)
    await storage._execute("INSERT INTO orders SELECT %s, user_id, status, currency, lines, total, version, placed_at"
                           " FROM orders LIMIT 1", uuid4())  # fmt: skip
    assert await listed(service) != before
    await rebuild_in(session, storage).run()
    assert await listed(service) == before
    assert untouched
    assert untouched[0] in await rows(storage, written, second)


async def test_a_long_transaction_of_a_reader_neither_waits_for_the_rebuild_nor_delays_it(
    service: Service, storage: PostgresStorage, session: Connection
) -> None:
    before = await place_some(service, storage)
    async with storage.database.connection() as reader:
        await reader.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await reader.execute("SELECT count(*) FROM orders")
        async with asyncio.timeout(20):
            await rebuild_in(session, storage).run()
        await reader.execute("SELECT count(*) FROM orders")
    assert await listed(service) == before


class Busy:
    """An event store into which orders are placed as fast as they are read."""

    def __init__(self, storage: PostgresStorage) -> None:
        self._storage = storage

    async def head(self) -> int:
        await self._place()
        return await self._storage.store.head()

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        await self._place()
        return await self._storage.store.since(position, limit)

    async def _place(self) -> None:
        order_id, placed = uuid4(), domain.place(ADA, "EUR", [TEA])
        await self._storage.store.append(
            order_id, 0, event_codec.encode(order_id, 0, [placed], Cause(str(ADA), uuid4()))
        )


async def test_a_rebuild_ends_although_every_read_finds_further_events(
    service: Service, storage: PostgresStorage, session: Connection
) -> None:
    await place_some(service, storage)
    rebuild = Rebuild(session, storage.database.name, Busy(storage), Live(shipped()))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        await rebuild.run()
    ahead = await rows(storage, "SELECT count(*) FROM orders")
    await storage.project()
    assert await rows(storage, "SELECT count(*) FROM orders") == await rows(
        storage, "SELECT count(DISTINCT originator_id) FROM events"
    )
    assert ahead[0][0] > 3


async def test_the_switch_waits_for_the_batch_of_the_projection_that_is_under_way(
    service: Service, storage: PostgresStorage, session: Connection
) -> None:
    before = await place_some(service, storage)
    async with storage.database.connection() as batch:
        await batch.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await batch.execute("SELECT pg_advisory_xact_lock(hashtext(current_schema()), hashtext('orders'))")
        running = asyncio.create_task(rebuild_in(session, storage).run())
        done, _ = await asyncio.wait([running], timeout=3)
        assert not done
    async with asyncio.timeout(20):
        await running
    assert await listed(service) == before


async def test_a_rebuild_beside_another_one_is_rejected(storage: PostgresStorage, session: Connection) -> None:
    with pytest.raises(RebuildRejected, match="another rebuild is under way"):
        async with exclusive_session(storage.database):
            pass


async def test_a_rebuild_whose_session_is_lost_leaves_no_lock_and_no_shadow(
    service: Service, storage: PostgresStorage
) -> None:
    await place_some(service, storage)

    class Cut(Rebuild):
        async def _fill_shadow(self) -> int:
            position = await super()._fill_shadow()
            end = f"SELECT pg_terminate_backend({self._session.info.backend_pid}, 5000)"
            await asyncio.to_thread(storage.server.vault.postgres.execute, end)
            return position

    with pytest.raises(RebuildRejected, match="lost"):
        async with exclusive_session(storage.database) as session:
            await rebuild_in(session, storage, Cut).run()
    async with exclusive_session(storage.database) as session:
        await rebuild_in(session, storage).run()


async def rows(storage: PostgresStorage, query: str, *values: object) -> list[tuple[int, ...]]:
    async with storage.database.connection() as connection:
        found = await (await connection.execute(query.encode(), values)).fetchall()
    return [tuple(row.values()) for row in found]
