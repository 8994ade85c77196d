"""Projections on Postgres: rows and position change together, by one worker at a time, never past an unknown event."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from behaviour.order.support.service import ADA, Service, shipped
from behaviour.order.support.storages import PostgresStorage
from psycopg import AsyncConnection
from support.waiting import until

from chassis.errors import RpcError
from chassis.settings import Live
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent
from order_service.worker import composition
from order_service.worker.leadership import Leadership
from order_service.worker.projections import (
    ORDERS,
    OUTBOX,
    Batch,
    Connection,
    Projection,
    project_orders,
    project_outbox,
)
from order_service.worker.projector import Projector


@pytest.fixture
def storage(service: Service) -> PostgresStorage:
    assert isinstance(service.storage, PostgresStorage)
    return service.storage


def projector(storage: PostgresStorage, projection: Projection) -> Projector:
    return Projector(projection, storage.store, storage.database, Live(shipped()))


async def listed(service: Service) -> int:
    return len((await service.queries.list_orders(ADA, None, None, 100)).orders)


async def test_a_worker_that_dies_within_a_batch_changes_neither_rows_nor_position(
    service: Service, storage: PostgresStorage
) -> None:
    for number in range(4):
        await service.place(f"k{number}")

    async def dies(connection: Connection, batch: Batch) -> None:
        await project_orders(connection, batch[:2])
        raise RuntimeError("the worker is gone")

    with pytest.raises(RuntimeError):
        await projector(storage, Projection("orders", dies)).step()
    assert await listed(service) == 0
    assert await projector(storage, ORDERS).step() == 4
    assert await listed(service) == 4


async def test_while_one_worker_holds_a_projection_another_projects_nothing(
    service: Service, storage: PostgresStorage
) -> None:
    await service.place()
    began, finish = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection, batch: Batch) -> None:
        began.set()
        await finish.wait()
        await project_outbox(connection, batch)

    first = asyncio.create_task(projector(storage, Projection("outbox", slow)).step())
    await asyncio.wait_for(began.wait(), 20)
    assert await projector(storage, OUTBOX).step() == 0
    finish.set()
    assert await first == 1
    assert await projector(storage, OUTBOX).step() == 0
    assert await storage.pending_entries() == 1


TRY_LOCK = f"SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext('{OUTBOX.name}'))"


@pytest.mark.parametrize("term", [3.0, 60.0], ids=["as it is", "control: a batch may last a minute"])
async def test_a_worker_that_is_stopped_within_a_batch_blocks_the_projection_for_seconds_only(
    service: Service, storage: PostgresStorage, term: float
) -> None:
    """Its pipeline is unfinished, so the database regards the transaction as active, not idle."""
    await service.place()
    began, finish = asyncio.Event(), asyncio.Event()

    async def hangs(connection: Connection, batch: Batch) -> None:
        await project_outbox(connection, batch)
        began.set()
        await finish.wait()

    settings = Live(shipped(leadership_term_seconds=term))
    database = storage.database
    first = asyncio.create_task(Projector(Projection("outbox", hangs), storage.store, database, settings).step())
    await asyncio.wait_for(began.wait(), 20)
    assert await _taken_over(projector(storage, OUTBOX)) is (term < 10)
    finish.set()
    ended = await asyncio.gather(first, return_exceptions=True)
    assert isinstance(ended[0], RpcError) is (term < 10)


async def _taken_over(projecting: Projector) -> bool:
    """Returns whether another worker can project within five seconds."""
    assert await projecting.step() == 0
    ends_at = time.monotonic() + 5
    while not (done := await projecting.step()) and time.monotonic() < ends_at:
        await asyncio.sleep(0.1)
    return bool(done)


async def test_an_event_whose_row_is_missing_is_logged_and_blocks_no_other(
    service: Service, storage: PostgresStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, other = await service.place("k1"), await service.place("k2")
    await storage.project()
    async with storage.database.connection() as connection:
        await connection.execute("DELETE FROM orders WHERE id = %s", (lost.id,))
    for order in (lost, other):
        await service.commands.cancel_order(ADA, order.id, [])
    assert await projector(storage, ORDERS).step() == 2
    assert "table orders has no row for this order" in capsys.readouterr().out
    assert [order.status for order in (await service.queries.list_orders(ADA, None, None, 9)).orders] == ["cancelled"]


async def test_events_that_take_longer_than_a_term_are_projected_in_smaller_batches(
    service: Service, storage: PostgresStorage
) -> None:
    """Each event takes 0.1 s, so the whole batch takes two terms."""
    for number in range(10):
        await service.place(f"k{number}")
    sizes: list[int] = []

    async def slowly(connection: Connection, batch: Batch) -> None:
        for position, _ in batch:
            sizes.append(position)
            await connection.execute("SELECT pg_sleep(0.1)")
        await project_orders(connection, batch)

    settings = Live(shipped(leadership_term_seconds=0.5, worker_poll_seconds=0.01))
    slow = Projector(Projection("orders", slowly), storage.store, storage.database, settings)
    await projected(service, slow, 10)
    assert sizes[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_an_event_that_alone_takes_longer_than_a_term_is_projected(
    service: Service, storage: PostgresStorage
) -> None:
    await service.place("k1")
    await service.place("k2")

    async def slowly(connection: Connection, batch: Batch) -> None:
        for _ in batch:
            await connection.execute("SELECT pg_sleep(1.0)")
        await project_orders(connection, batch)

    settings = Live(shipped(leadership_term_seconds=0.5, worker_poll_seconds=0.01))
    slow = Projector(Projection("orders", slowly), storage.store, storage.database, settings)
    await projected(service, slow, 2)


async def projected(service: Service, projecting: Projector, orders: int) -> None:
    """Runs the projection until all orders are in the list."""
    stopping = asyncio.Event()
    running = asyncio.create_task(projecting.run(stopping))

    async def complete() -> bool:
        return await listed(service) == orders

    await until("every order is in the list", complete, 40)
    stopping.set()
    await asyncio.wait_for(running, 20)


async def test_a_worker_that_no_longer_leads_is_ready_again(service: Service, storage: PostgresStorage) -> None:
    order = await service.place("k1")
    past = await service.store.read(order.id)
    await service.store.append(order.id, 1, [replace(past[0], version=2, type="OrderShipped")])
    settings, stopping = Live(shipped(worker_poll_seconds=0.01)), asyncio.Event()
    leader = Leadership(storage.database, "a", settings)
    stopped = Projector(ORDERS, storage.store, storage.database, settings)
    await leader._try_for_term()
    running = asyncio.create_task(stopped.run(stopping))
    await until("the projection stops", lambda: "OrderShipped" in composition.readiness(leader, stopped))
    await leader.resign()
    assert composition.readiness(leader, stopped) == "ok"
    stopping.set()
    await asyncio.wait_for(running, 20)
    assert stopped.readiness() == "ok"


async def test_a_projection_that_fails_is_not_ready(service: Service, storage: PostgresStorage) -> None:
    await service.place()

    async def broken(connection: Connection, batch: Batch) -> None:
        raise RuntimeError("a defect")

    failing = projector(storage, Projection("orders", broken))
    with pytest.raises(RuntimeError):
        await failing.run(asyncio.Event())
    assert "a defect" in failing.readiness()


@pytest.mark.parametrize("ends", [True, False], ids=["as it is", "control: nothing ends it"])
async def test_a_worker_that_is_stopped_between_two_statements_blocks_the_projection_for_seconds_only(
    service: Service, storage: PostgresStorage, ends: bool
) -> None:
    """It keeps its connection and so the lock, until the database ends its transaction."""
    await service.place()
    database, projecting = storage.database, projector(storage, OUTBOX)
    stopped = await AsyncConnection.connect(**database.login().keywords())
    try:
        if not ends:
            await stopped.execute("SET idle_in_transaction_session_timeout = 0")
        await stopped.execute(TRY_LOCK)
        assert await _taken_over(projecting) is ends
    finally:
        await stopped.close()


async def test_a_projection_stops_before_an_event_of_a_newer_version_and_is_not_ready(
    service: Service, storage: PostgresStorage
) -> None:
    order = await service.place("k1")
    past = await service.store.read(order.id)
    await service.store.append(order.id, 1, [replace(past[0], version=2, type="OrderShipped")])
    await service.place("k2")
    stopped = projector(storage, ORDERS)
    assert await stopped.step() == 1
    assert "OrderShipped" in stopped.readiness()
    with pytest.raises(UnknownEvent, match="OrderShipped"):
        await stopped.step()
    assert await listed(service) == 1


async def test_a_row_has_the_last_state_of_its_order_in_a_batch_that_begins_with_it_or_continues_it(
    service: Service, storage: PostgresStorage
) -> None:
    settled, continued = await service.place("k1"), await service.place("k2")
    await service.commands.confirm_order(settled.id)
    await service.commands.cancel_order(ADA, settled.id, [])
    assert await projector(storage, ORDERS).step() == 4
    await service.commands.confirm_order(continued.id)
    await service.commands.cancel_order(ADA, continued.id, [])
    assert await projector(storage, ORDERS).step() == 2
    rows = (await service.queries.list_orders(ADA, None, None, 100)).orders
    assert [(row.status.value, row.version) for row in rows] == [("cancelled", 3)] * 2
    assert rows == [event_codec.fold(await service.store.read(order.id)) for order in (continued, settled)]


async def test_a_batch_takes_the_same_statements_however_many_events_it_has(
    service: Service, storage: PostgresStorage
) -> None:
    executed: list[str] = []

    def counting(projection: Projection) -> Projection:
        async def counted(connection: Connection, batch: Batch) -> None:
            cursor_class, cursors = connection.cursor_factory, [0]

            class Counting(cursor_class):  # type: ignore[misc, valid-type]
                async def execute(self, query: object, *args: object, **options: object) -> object:
                    cursors[0] += 1
                    return await super().execute(query, *args, **options)

            connection.cursor_factory = Counting
            await projection.apply(connection, batch)
            connection.cursor_factory = cursor_class
            executed.append(f"{projection.name} {len(batch)} events: {cursors[0]} statements")

        return Projection(projection.name, counted)

    for orders in (1, 40):
        for number in range(orders):
            order = await service.place(f"{orders} {number}")
            await service.commands.confirm_order(order.id)
        for each in (ORDERS, OUTBOX):
            await projector(storage, counting(each)).step()
    assert executed == ["orders 2 events: 1 statements", "outbox 2 events: 1 statements",
                        "orders 80 events: 1 statements", "outbox 80 events: 1 statements"]  # fmt: skip


async def test_rows_equal_the_fold_of_the_events(service: Service, storage: PostgresStorage) -> None:
    orders = [await service.place(f"k{number}") for number in range(3)]
    await service.work()
    await service.commands.cancel_order(ADA, orders[0].id, [])
    await service.project()
    rows = (await service.queries.list_orders(ADA, None, None, 100)).orders
    assert rows == [event_codec.fold(await service.store.read(order.id)) for order in reversed(orders)]
