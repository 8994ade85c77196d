"""Placing pauses only while the worker makes progress and is behind all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from behaviour.order.support.service import ADA, Service, shipped
from behaviour.order.support.storages import MemoryStorage
from support.waiting import until

from chassis.errors import RpcError, unavailable
from chassis.settings import Live
from order_service.order_watches import OrderWatches
from order_service.placing_admission import PlacingAdmission
from order_service.rpc import OrderRpc
from order_service.storage.placing_pause import MemoryPlacingPause
from order_service.worker.back_pressure import BackPressure
from order_service.worker.user_credit import FakeUserCredit
from shop.order.v1 import order_pb2 as wire

LONGEST = 1.0
UNAVAILABLE = unavailable("BREAKER_OPEN", "the User Service is unavailable", 1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Reported(BackPressure):
    """The rule with a clock that the test moves."""

    def __init__(self) -> None:
        self.time = Clock()
        super().__init__(Live(shipped(backlog_seconds=LONGEST)), self.time)

    def behind_for(self, seconds: float, *, succeeding: bool | None = True) -> None:
        """Lets time pass while each claim leaves entries behind and attempts succeed, fail, or do not end (None)."""
        for _ in range(round(seconds / 0.1)):
            self.claimed(all_due=False)
            self.time.now += 0.1
            if succeeding is not None:
                for _ in range(10):
                    self.attempted(succeeded=succeeding)


@pytest.fixture
def rule() -> Reported:
    return Reported()


def test_a_worker_that_is_behind_for_longer_than_the_setting_pauses_placing(rule: Reported) -> None:
    rule.behind_for(0.9 * LONGEST)
    assert not rule.pauses
    rule.behind_for(0.3 * LONGEST)
    assert rule.pauses


def test_placing_continues_when_a_claim_has_everything_that_is_due(rule: Reported) -> None:
    rule.behind_for(2 * LONGEST)
    rule.claimed(all_due=True)
    assert not rule.pauses
    rule.behind_for(0.9 * LONGEST)
    assert not rule.pauses


def test_a_worker_whose_attempts_fail_pauses_nothing(rule: Reported) -> None:
    rule.behind_for(60, succeeding=False)
    assert not rule.pauses


def test_a_worker_whose_attempts_do_not_end_pauses_nothing(rule: Reported) -> None:
    rule.behind_for(2 * LONGEST)
    rule.behind_for(1.1 * LONGEST, succeeding=None)
    assert not rule.pauses


def test_a_worker_that_succeeds_again_may_be_behind_for_as_long_as_the_outage_was(rule: Reported) -> None:
    rule.behind_for(60, succeeding=False)
    rule.behind_for(60 + 4.5 + LONGEST)
    assert not rule.pauses
    rule.behind_for(1.0 + 0.5 * LONGEST)
    assert rule.pauses
    rule.claimed(all_due=True)
    assert not rule.pauses


def test_a_new_leader_may_be_behind_for_some_seconds_more_until_it_has_caught_up_once(rule: Reported) -> None:
    rule.begin()
    rule.behind_for(4.9 + LONGEST)
    assert not rule.pauses
    rule.behind_for(0.3 * LONGEST)
    assert rule.pauses
    rule.begin()
    rule.claimed(all_due=True)
    rule.behind_for(1.2 * LONGEST)
    assert rule.pauses


class BrokenPause(MemoryPlacingPause):
    """A pause that cannot be read, for a reason that is a defect."""

    reads = 0

    async def left(self) -> float:
        self.reads += 1
        raise LookupError("no such table")


class Placing:
    """The servicer of an order service whose worker has more to do than it can."""

    def __init__(self, **changes: Any) -> None:
        settings = shipped(backlog_seconds=0.2, worker_poll_seconds=0.01, outbox_concurrency=1, **changes)
        self.service = Service(settings, MemoryStorage(), SlowCredit())
        self.pause = MemoryPlacingPause()
        self.admission = PlacingAdmission(self.pause, self.service.settings)
        watches: OrderWatches = None  # type: ignore[assignment]
        self.rpc = OrderRpc(self.service.commands, self.service.queries, watches, self.admission.check)
        self.placed = 0

    async def place(self) -> None:
        self.placed += 1
        line = wire.OrderLine(sku="tea", quantity=1, unit_price=1)
        await self.rpc.PlaceOrder(
            wire.PlaceOrderRequest(user_id=str(ADA), idempotency_key=f"k{self.placed}", currency="EUR", lines=[line]),
            None,  # type: ignore[arg-type]
        )

    async def run(self, stopping: asyncio.Event) -> None:
        manager = self.service.process_manager
        await asyncio.gather(manager.run(stopping), manager.back_pressure.run(stopping, self.pause))

    async def rejection(self, seconds: float) -> RpcError | None:
        """Places orders quickly; returns the error that ends this, None if there is none for `seconds`."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while loop.time() < ends_at:
            try:
                await self.place()
            except RpcError as error:
                return error
            await self.service.project()
            self.service.process_manager.wakeup.set()
            await asyncio.sleep(0.002)
        return None


class SlowCredit(FakeUserCredit):
    """Each reservation takes 10 ms."""

    async def reserve(self, *args: Any) -> None:
        await asyncio.sleep(0.01)
        await super().reserve(*args)


@pytest.fixture
async def placing() -> AsyncIterator[Placing]:
    made, stopping = Placing(), asyncio.Event()
    working = asyncio.create_task(made.run(stopping))
    yield made
    stopping.set()
    await asyncio.wait_for(working, 20)


async def test_orders_that_arrive_faster_than_they_are_completed_are_rejected_until_the_worker_has_caught_up(
    placing: Placing,
) -> None:
    rejection = await placing.rejection(20)
    assert rejection is not None
    assert (rejection.code, rejection.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKLOG")
    assert (rejection.retry_after, rejection.pushback) == (1.0, -1.0)

    async def accepted() -> bool:
        try:
            await placing.place()
        except RpcError:
            return False
        return True

    await until("an order is accepted again", accepted, 20)
    await until("all are settled", lambda: not placing.service.storage.outbox.pending, 20)  # type: ignore[attr-defined]


async def test_orders_are_accepted_as_pending_while_the_user_service_is_unavailable(placing: Placing) -> None:
    placing.service.user_credit.failure = UNAVAILABLE
    assert await placing.rejection(1.5) is None


async def test_orders_are_accepted_if_the_pause_cannot_be_read(placing: Placing) -> None:
    async def fails() -> float:
        raise UNAVAILABLE

    await placing.pause.extend(60)
    placing.pause.left = fails  # type: ignore[method-assign]
    assert await placing.rejection(0.3) is None


async def test_a_pause_that_nobody_extends_ends_on_its_own() -> None:
    placing = Placing()
    await placing.pause.extend(0.3)
    assert await placing.rejection(5) is not None
    await asyncio.sleep(0.35)
    await placing.place()


async def test_a_repeated_request_gets_its_order_during_a_pause() -> None:
    placing = Placing()
    await placing.place()
    await placing.pause.extend(60)
    placing.admission.check()
    await until("the pause is known", lambda: _is_paused(placing))
    placing.placed = 0
    await placing.place()
    with pytest.raises(RpcError) as raised:
        await placing.place()
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKLOG")


async def test_a_pause_that_fails_to_be_read_is_not_asked_for_at_each_order() -> None:
    placing, broken = Placing(), BrokenPause()
    admission = PlacingAdmission(broken, placing.service.settings)
    for _ in range(50):
        admission.check()
        await asyncio.sleep(0.001)
    assert 1 <= broken.reads <= 2


def _is_paused(placing: Placing) -> bool:
    try:
        placing.admission.check()
    except RpcError:
        return True
    return False
