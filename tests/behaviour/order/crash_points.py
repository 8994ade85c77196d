"""A worker that fails or is killed at each named point: the order still ends with its credit held once, or released."""

from __future__ import annotations

import asyncio
import random

import pytest
from behaviour.order.support.faulty_ports import Fault, Worker
from behaviour.order.support.service import ADA, Service

from order_service.domain import Status


async def attempted(service: Service, fault: Fault) -> Worker:
    """Returns a worker that has attempted every outbox entry with this fault."""
    worker = Worker(service, random.Random(0))
    await service.project()
    for entry in await service.outbox.claim(10, service.settings.value.outbox_attempt_seconds):
        await asyncio.create_task(worker.attempt(entry, fault))
    return worker


async def taken_over(service: Service, dead: Worker) -> None:
    """Lets the next worker take over, and the late calls of the first one arrive."""
    await service.storage.pass_time()
    await service.work()
    await dead.user_credit.arrive()
    await service.work()
    assert await service.storage.pending_entries() == 0


@pytest.mark.parametrize("fault", Fault)
async def test_an_order_is_confirmed_once_after_any_fault_of_its_worker(service: Service, fault: Fault) -> None:
    order = await service.place()
    await taken_over(service, await attempted(service, fault))
    assert await service.types(order.id) == ["OrderPlaced", "OrderConfirmed"]
    assert service.user_credit.held == {order.id: order.total}


@pytest.mark.parametrize("fault", Fault)
async def test_an_order_is_rejected_once_and_holds_nothing_after_any_fault_of_its_worker(
    service: Service, fault: Fault
) -> None:
    service.user_credit.available = 1
    order = await service.place()
    await taken_over(service, await attempted(service, fault))
    assert await service.types(order.id) == ["OrderPlaced", "OrderRejected"]
    assert (service.user_credit.held, service.user_credit.available) == ({}, 1)


@pytest.mark.parametrize("fault", Fault)
async def test_a_cancelled_order_releases_its_credit_once_after_any_fault_of_its_worker(
    service: Service, fault: Fault
) -> None:
    order = await service.place()
    await service.work()
    await service.commands.cancel_order(ADA, order.id, [])
    await taken_over(service, await attempted(service, fault))
    assert (service.user_credit.held, service.user_credit.available) == ({}, 100_000)


@pytest.mark.parametrize("fault", Fault)
async def test_an_order_that_is_cancelled_after_a_fault_of_its_worker_holds_nothing(
    service: Service, fault: Fault
) -> None:
    order = await service.place()
    dead = await attempted(service, fault)
    await service.commands.cancel_order(ADA, order.id, [])
    await taken_over(service, dead)
    assert (await service.queries.get_order(ADA, order.id)).status is Status.CANCELLED
    assert (service.user_credit.held, service.user_credit.available) == ({}, 100_000)
