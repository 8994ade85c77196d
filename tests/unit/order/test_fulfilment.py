"""From placed to confirmed or rejected and back, whatever fails on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from chassis.errors import unavailable
from order_service.domain import Line, Status
from order_service.users import FakeUsers

from .conftest import ADA

if TYPE_CHECKING:
    from .conftest import Knobs, Service

AWAY = unavailable("BREAKER_OPEN", "away", 1)


async def status(service: Service, order_id: UUID) -> Status:
    return (await service.queries.get_order(ADA, order_id)).status


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def test_an_order_beyond_the_credit_is_rejected_with_the_reason(service: Service) -> None:
    order = await service.place("k1", ADA, Line("gold", 1, 100_001))
    await service.work()
    events = await service.queries.list_order_events(ADA, order.id)
    assert (events[-1].type, events[-1].data) == ("OrderRejected", {"reason": "CREDIT_EXCEEDED"})
    assert service.errands.open == 0


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
        service.errands.pass_time()
    assert await status(service, order.id) is Status.PENDING
    service.users.away = None
    await service.work()
    assert await status(service, order.id) is Status.CONFIRMED


async def test_an_errand_that_is_run_again_has_the_effect_of_once(service: Service) -> None:
    order = await service.place()
    service.errands.add(order.id, "reserve")
    for _ in range(3):
        service.errands.add(order.id, "reserve")
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
    assert service.errands.open == 0
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


async def test_one_errand_that_always_fails_holds_up_no_other(service: Service, knobs: Knobs) -> None:
    service.settings = knobs(errands_at_once=1, poll_seconds=0.01)
    service.errands.add(UUID(int=99), "reserve")
    order = await service.place()
    await service.owe()
    following = asyncio.create_task(service.fulfilment.follow(asyncio.Event()))
    await until(lambda: order.id in service.users.held)
    following.cancel()
    assert service.errands.open == 1


async def test_a_new_errand_wakes_the_process_manager_at_once(service: Service, knobs: Knobs) -> None:
    service.settings = knobs(poll_seconds=60.0)
    following = asyncio.create_task(service.fulfilment.follow(asyncio.Event()))
    await asyncio.sleep(0)
    order = await service.place()
    await service.owe()
    service.fulfilment.news.set()
    await until(lambda: order.id in service.users.held)
    following.cancel()


async def test_a_worker_that_stops_claims_nothing_more_and_finishes_what_it_began(
    service: Service, knobs: Knobs
) -> None:
    gate, stopping = asyncio.Event(), asyncio.Event()

    class Slow(FakeUsers):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            stopping.set()
            await gate.wait()
            await super().reserve(order_id, user_id, currency, amount)

    service.settings = knobs(errands_at_once=1, poll_seconds=0.01)
    service.fulfilment._users = Slow()
    orders = [await service.place("k1"), await service.place("k2")]
    await service.owe()
    following = asyncio.create_task(service.fulfilment.follow(stopping))
    await asyncio.wait_for(stopping.wait(), 5)
    gate.set()
    await asyncio.wait_for(following, 5)
    assert [await status(service, order.id) for order in orders] == [Status.CONFIRMED, Status.PENDING]


async def test_the_work_afterwards_goes_on_with_the_trace_of_the_request(service: Service) -> None:
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        order = await service.place()
    await service.work()
    metas = [event.meta["traceparent"] for event in await service.store.read(order.id)]
    assert [meta.split("-")[1] for meta in metas] == [f"{0xABC:032x}"] * 2
