"""The process manager confirms or rejects each order and releases its credit, whatever fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from behaviour.order.support.service import ADA, Service, SettingsFactory
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from support.waiting import until

from chassis.errors import unavailable
from order_service.domain import Line, Status
from order_service.worker.user_credit import FakeUserCredit

UNAVAILABLE = unavailable("BREAKER_OPEN", "the User Service is unavailable", 1)


async def status(service: Service, order_id: UUID) -> Status:
    return (await service.queries.get_order(ADA, order_id)).status


async def test_an_order_beyond_the_credit_is_rejected_with_the_reason(service: Service) -> None:
    order = await service.place("k1", ADA, Line("gold", 1, 100_001))
    await service.work()
    events = await service.queries.list_order_events(ADA, order.id)
    assert (events[-1].type, events[-1].data) == ("OrderRejected", {"reason": "CREDIT_EXCEEDED"})
    assert await service.storage.pending_entries() == 0


async def test_a_placed_order_is_confirmed_and_its_total_held(service: Service) -> None:
    order = await service.place()
    await service.work()
    assert await status(service, order.id) is Status.CONFIRMED
    assert service.user_credit.held == {order.id: 300}


async def test_an_order_stays_pending_while_the_user_service_is_unavailable_and_is_confirmed_later(
    service: Service,
) -> None:
    order = await service.place()
    service.user_credit.failure = UNAVAILABLE
    for _ in range(3):
        await service.work()
        await service.storage.pass_time()
    assert await status(service, order.id) is Status.PENDING
    service.user_credit.failure = None
    await service.work()
    assert await status(service, order.id) is Status.CONFIRMED


async def test_an_outbox_entry_that_is_processed_again_has_the_effect_of_once(service: Service) -> None:
    order = await service.place()
    await service.storage.add_entry(order.id, "reserve")
    for _ in range(3):
        await service.storage.add_entry(order.id, "reserve")
        await service.work()
    assert await service.types(order.id) == ["OrderPlaced", "OrderConfirmed"]
    assert service.user_credit.available == 99_700


async def test_a_reservation_whose_answer_was_lost_is_not_made_twice(service: Service) -> None:
    order = await service.place()
    await service.user_credit.reserve(order.id, ADA, "EUR", 300)
    await service.work()
    assert service.user_credit.available == 99_700
    assert await status(service, order.id) is Status.CONFIRMED


async def test_the_credit_of_a_cancelled_order_is_released(service: Service) -> None:
    order = await service.place()
    await service.work()
    await service.commands.cancel_order(ADA, order.id, [])
    await service.work()
    assert service.user_credit.available == 100_000
    assert await status(service, order.id) is Status.CANCELLED


async def test_an_order_cancelled_before_its_reservation_never_reserves(service: Service) -> None:
    order = await service.place()
    await service.commands.cancel_order(ADA, order.id, [])
    await service.work()
    assert service.user_credit.available == 100_000
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


@pytest.mark.parametrize("release_first", [True, False])
async def test_an_order_cancelled_during_its_reservation_holds_nothing_in_the_end(
    service: Service, release_first: bool
) -> None:
    class Slow(FakeUserCredit):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            await service.commands.cancel_order(ADA, order_id, [])
            if release_first:
                await self.release(order_id, user_id)
            await super().reserve(order_id, user_id, currency, amount)

    service.process_manager._user_credit = service.user_credit = Slow()
    order = await service.place()
    await service.work()
    await service.work()
    assert service.user_credit.available == 100_000
    assert await service.storage.pending_entries() == 0
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


async def test_an_outbox_entry_that_always_fails_delays_no_other(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(outbox_concurrency=1, worker_poll_seconds=0.01))
    await service.storage.add_entry(UUID(int=99), "reserve")
    order = await service.place()
    await service.project()
    await followed_until(service, order.id)
    assert await service.storage.pending_entries() == 1


async def test_a_new_outbox_entry_wakes_the_process_manager_at_once(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(worker_poll_seconds=60.0))
    order = await service.place()

    async def project() -> None:
        await service.project()
        service.process_manager.wakeup.set()

    await followed_until(service, order.id, project)


async def followed_until(
    service: Service, order_id: UUID, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Lets the process manager run until the order is confirmed and its outbox entry complete."""
    stopping = asyncio.Event()
    following = asyncio.create_task(service.process_manager.run(stopping))
    await asyncio.sleep(0)
    if meanwhile:
        await meanwhile()

    async def confirmed() -> bool:
        return await status(service, order_id) is Status.CONFIRMED

    await until(f"order {order_id} is confirmed", confirmed, 20)
    stopping.set()
    service.process_manager.wakeup.set()
    await asyncio.wait_for(following, 20)


async def test_a_worker_that_stops_claims_nothing_more_and_completes_its_entries_in_progress(
    service: Service, make_settings: SettingsFactory
) -> None:
    gate, stopping = asyncio.Event(), asyncio.Event()

    class Slow(FakeUserCredit):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            stopping.set()
            await gate.wait()
            await super().reserve(order_id, user_id, currency, amount)

    service.settings.replace(make_settings(outbox_concurrency=1, worker_poll_seconds=0.01))
    service.process_manager._user_credit = Slow()
    orders = [await service.place("k1"), await service.place("k2")]
    await service.project()
    following = asyncio.create_task(service.process_manager.run(stopping))
    await asyncio.wait_for(stopping.wait(), 20)
    gate.set()
    await asyncio.wait_for(following, 20)
    assert {await status(service, order.id) for order in orders} == {Status.CONFIRMED, Status.PENDING}


async def test_a_late_postponement_does_not_end_the_claim_of_a_successor(service: Service) -> None:
    await service.place()
    await service.project()
    (before,) = await service.outbox.claim(10, 60)
    await service.storage.pass_time()
    (now,) = await service.outbox.claim(10, 60)
    await service.outbox.postpone(before, 0)
    assert await service.outbox.claim(10, 60) == []
    await service.outbox.complete(now)
    assert await service.storage.pending_entries() == 0


async def test_events_of_the_process_manager_continue_the_trace_of_the_request(service: Service) -> None:
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        order = await service.place()
    await service.work()
    metas = [event.meta["traceparent"] for event in await service.store.read(order.id)]
    assert [meta.split("-")[1] for meta in metas] == [f"{0xABC:032x}"] * 2
