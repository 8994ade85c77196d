"""Which outbox entries the process manager processes at the same time, and when."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from behaviour.order.process_manager import UNAVAILABLE, followed_until
from behaviour.order.support.service import Service, SettingsFactory
from support.waiting import until

from order_service.worker.outbox import OutboxEntry
from order_service.worker.user_credit import FakeUserCredit


class Gated(FakeUserCredit):
    """Reservations wait at a gate; counts those that wait at the same time, and those that have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.waiting = self.most_waiting = self.begun = 0

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        self.begun += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        await super().reserve(order_id, user_id, currency, amount)


@pytest.fixture
async def gated(service: Service, make_settings: SettingsFactory) -> Gated:
    """Returns the credit of a service with one order, whose reservation will wait."""
    service.settings.replace(make_settings(worker_poll_seconds=0.01))
    credit = service.process_manager._user_credit = service.user_credit = Gated()
    await service.place()
    await service.project()
    return credit


class DefectError(Exception):
    """An error that the process manager does not handle, so that its supervisor restarts it."""


async def test_a_restarted_process_manager_processes_none_of_its_entries_twice_at_the_same_time(
    service: Service, gated: Gated
) -> None:
    claim = service.outbox.claim
    running = asyncio.create_task(service.process_manager.run(asyncio.Event()))
    await until("the reservation waits", lambda: gated.waiting == 1)

    async def fails(*_: object) -> list[OutboxEntry]:
        raise DefectError

    service.outbox.claim = fails  # type: ignore[method-assign]
    service.process_manager.wakeup.set()
    with pytest.raises(DefectError):
        await asyncio.wait_for(running, 20)
    service.outbox.claim = claim  # type: ignore[method-assign]
    stopping = asyncio.Event()
    running = asyncio.create_task(service.process_manager.run(stopping))
    await until("it is processed again", lambda: gated.begun == 2)
    gated.gate.set()
    stopping.set()
    await asyncio.wait_for(running, 20)
    assert gated.most_waiting == 1
    assert await service.storage.pending_entries() == 0


async def test_an_entry_whose_claim_expires_in_progress_is_not_processed_twice_at_the_same_time(
    service: Service, gated: Gated
) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(service.process_manager.run(stopping))
    for _ in range(5):
        await until("the reservation waits", lambda: gated.waiting >= 1)
        await service.storage.pass_time()
        service.process_manager.wakeup.set()
        await asyncio.sleep(0.05)
    gated.gate.set()
    stopping.set()
    await asyncio.wait_for(running, 20)
    assert gated.begun == 1
    assert await service.storage.pending_entries() == 0


async def test_entries_of_one_order_are_processed_one_after_the_other_and_those_of_others_meanwhile(
    service: Service, gated: Gated
) -> None:
    order = await service.place()
    await service.storage.add_entry(order.id, "reserve")
    await service.place("k2")
    await service.project()
    stopping = asyncio.Event()
    running = asyncio.create_task(service.process_manager.run(stopping))
    await until("a reservation of each order waits", lambda: gated.waiting == 2)
    await asyncio.sleep(0.05)
    assert gated.begun == 2
    gated.gate.set()
    stopping.set()
    await asyncio.wait_for(running, 20)
    assert await service.storage.pending_entries() == 0


async def test_a_postponed_entry_is_processed_when_it_is_due_and_not_at_the_next_poll(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(worker_poll_seconds=60.0, outbox_retry_first_seconds=0.05))
    service.user_credit.failure = UNAVAILABLE
    order, claim, claims = await service.place(), service.outbox.claim, 0
    await service.project()

    async def counted(limit: int, seconds: float) -> list[OutboxEntry]:
        nonlocal claims
        claims += 1
        if claims == 2:
            service.user_credit.failure = None
            await service.storage.pass_time()
        return await claim(limit, seconds)

    service.outbox.claim = counted  # type: ignore[method-assign]
    await followed_until(service, order.id)


async def test_a_process_manager_that_is_cancelled_works_on_no_entry_any_more(service: Service, gated: Gated) -> None:
    running = asyncio.create_task(service.process_manager.run(asyncio.Event()))
    await until("the reservation waits", lambda: gated.waiting == 1)
    running.cancel()
    await asyncio.wait({running})
    gated.gate.set()
    assert gated.waiting == 0
    assert gated.held == {}
