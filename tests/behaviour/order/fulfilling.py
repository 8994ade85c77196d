"""From placed to confirmed or rejected and back, whatever fails on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from behaviour.order.support.service import ADA, Service, SettingsFactory
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from chassis.errors import unavailable
from order_service.domain import Line, Status
from order_service.worker.user_credit import FakeUsers

AWAY = unavailable("BREAKER_OPEN", "away", 1)


async def status(service: Service, order_id: UUID) -> Status:
    return (await service.queries.get_order(ADA, order_id)).status


async def until(what: str, condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    ends_at = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < ends_at, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def test_an_order_beyond_the_credit_is_rejected_with_the_reason(service: Service) -> None:
    order = await service.place("k1", ADA, Line("gold", 1, 100_001))
    await service.work()
    events = await service.queries.list_order_events(ADA, order.id)
    assert (events[-1].type, events[-1].data) == ("OrderRejected", {"reason": "CREDIT_EXCEEDED"})
    assert await service.storage.open_errands() == 0


async def test_a_placed_order_is_confirmed_and_its_total_held(service: Service) -> None:
    order = await service.place()
    await service.work()
    assert await status(service, order.id) is Status.CONFIRMED
    assert service.users.held == {order.id: 300}


async def test_while_the_user_service_is_away_an_order_stays_pending_and_is_finished_later(
    service: Service,
) -> None:
    order = await service.place()
    service.users.away = AWAY
    for _ in range(3):
        await service.work()
        await service.storage.pass_time()
    assert await status(service, order.id) is Status.PENDING
    service.users.away = None
    await service.work()
    assert await status(service, order.id) is Status.CONFIRMED


async def test_an_errand_that_is_run_again_has_the_effect_of_once(service: Service) -> None:
    order = await service.place()
    await service.storage.owe(order.id, "reserve")
    for _ in range(3):
        await service.storage.owe(order.id, "reserve")
        await service.work()
    assert await service.types(order.id) == ["OrderPlaced", "OrderConfirmed"]
    assert service.users.available == 99_700


async def test_a_reservation_whose_answer_was_lost_is_not_made_twice(service: Service) -> None:
    order = await service.place()
    await service.users.reserve(order.id, ADA, "EUR", 300)
    await service.work()
    assert service.users.available == 99_700
    assert await status(service, order.id) is Status.CONFIRMED


async def test_a_cancelled_order_gets_its_credit_back(service: Service) -> None:
    order = await service.place()
    await service.work()
    await service.commands.cancel_order(ADA, order.id, [])
    await service.work()
    assert service.users.available == 100_000
    assert await status(service, order.id) is Status.CANCELLED


async def test_an_order_cancelled_before_its_reservation_never_reserves(service: Service) -> None:
    order = await service.place()
    await service.commands.cancel_order(ADA, order.id, [])
    await service.work()
    assert service.users.available == 100_000
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


@pytest.mark.parametrize("release_first", [True, False])
async def test_an_order_cancelled_during_its_reservation_holds_nothing_in_the_end(
    service: Service, release_first: bool
) -> None:
    class Slow(FakeUsers):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            await service.commands.cancel_order(ADA, order_id, [])
            if release_first:
                await self.release(order_id, user_id)
            await super().reserve(order_id, user_id, currency, amount)

    service.fulfilment._users = service.users = Slow()
    order = await service.place()
    await service.work()
    await service.work()
    assert service.users.available == 100_000
    assert await service.storage.open_errands() == 0
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


async def test_one_errand_that_always_fails_holds_up_no_other(service: Service, make_settings: SettingsFactory) -> None:
    service.settings = make_settings(errands_at_once=1, poll_seconds=0.01)
    await service.storage.owe(UUID(int=99), "reserve")
    order = await service.place()
    await service.owe()
    await followed_until(service, order.id)
    assert await service.storage.open_errands() == 1


async def test_a_new_errand_wakes_the_process_manager_at_once(service: Service, make_settings: SettingsFactory) -> None:
    service.settings = make_settings(poll_seconds=60.0)
    order = await service.place()

    async def owe() -> None:
        await service.owe()
        service.fulfilment.news.set()

    await followed_until(service, order.id, owe)


async def followed_until(
    service: Service, order_id: UUID, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Let the process manager run until the order is confirmed and its errand gone."""
    stopping = asyncio.Event()
    following = asyncio.create_task(service.fulfilment.follow(stopping))
    await asyncio.sleep(0)
    if meanwhile:
        await meanwhile()

    async def confirmed() -> bool:
        return await status(service, order_id) is Status.CONFIRMED

    await until(f"order {order_id} is confirmed", confirmed)
    stopping.set()
    service.fulfilment.news.set()
    await asyncio.wait_for(following, 20)


async def test_a_worker_that_stops_claims_nothing_more_and_finishes_what_it_began(
    service: Service, make_settings: SettingsFactory
) -> None:
    gate, stopping = asyncio.Event(), asyncio.Event()

    class Slow(FakeUsers):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            stopping.set()
            await gate.wait()
            await super().reserve(order_id, user_id, currency, amount)

    service.settings = make_settings(errands_at_once=1, poll_seconds=0.01)
    service.fulfilment._users = Slow()
    orders = [await service.place("k1"), await service.place("k2")]
    await service.owe()
    following = asyncio.create_task(service.fulfilment.follow(stopping))
    await asyncio.wait_for(stopping.wait(), 20)
    gate.set()
    await asyncio.wait_for(following, 20)
    assert {await status(service, order.id) for order in orders} == {Status.CONFIRMED, Status.PENDING}


async def test_the_work_afterwards_goes_on_with_the_trace_of_the_request(service: Service) -> None:
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        order = await service.place()
    await service.work()
    metas = [event.meta["traceparent"] for event in await service.store.read(order.id)]
    assert [meta.split("-")[1] for meta in metas] == [f"{0xABC:032x}"] * 2
