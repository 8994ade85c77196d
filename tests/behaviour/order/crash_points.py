"""A worker that fails or dies at each named moment: the order still ends with its credit held once, or given back."""

from __future__ import annotations

import asyncio
import random

import pytest
from behaviour.order.support.faulty_ports import Fate, Worker
from behaviour.order.support.service import ADA, Service

from order_service.domain import Status


async def attempted(service: Service, fate: Fate) -> Worker:
    """A worker that has tried every errand with this fate."""
    worker = Worker(service, random.Random(0))
    await service.owe()
    for errand in await service.errands.claim(10, service.settings.errand_seconds):
        await asyncio.create_task(worker.attempt(errand, fate))
    return worker


async def taken_over(service: Service, dead: Worker) -> None:
    """What the next worker does, and what was still under way when the first one ended."""
    await service.storage.pass_time()
    await service.work()
    await dead.users.arrive()
    await service.work()
    assert await service.storage.open_errands() == 0


@pytest.mark.parametrize("fate", Fate)
async def test_an_order_is_confirmed_once_wherever_its_worker_ends(service: Service, fate: Fate) -> None:
    order = await service.place()
    await taken_over(service, await attempted(service, fate))
    assert await service.types(order.id) == ["OrderPlaced", "OrderConfirmed"]
    assert service.users.held == {order.id: order.total}


@pytest.mark.parametrize("fate", Fate)
async def test_an_order_is_rejected_once_and_holds_nothing_wherever_its_worker_ends(
    service: Service, fate: Fate
) -> None:
    service.users.available = 1
    order = await service.place()
    await taken_over(service, await attempted(service, fate))
    assert await service.types(order.id) == ["OrderPlaced", "OrderRejected"]
    assert (service.users.held, service.users.available) == ({}, 1)


@pytest.mark.parametrize("fate", Fate)
async def test_a_cancelled_order_gives_back_once_wherever_its_worker_ends(service: Service, fate: Fate) -> None:
    order = await service.place()
    await service.work()
    await service.commands.cancel_order(ADA, order.id, [])
    await taken_over(service, await attempted(service, fate))
    assert (service.users.held, service.users.available) == ({}, 100_000)


@pytest.mark.parametrize("fate", Fate)
async def test_an_order_cancelled_after_its_worker_ended_holds_nothing(service: Service, fate: Fate) -> None:
    order = await service.place()
    dead = await attempted(service, fate)
    await service.commands.cancel_order(ADA, order.id, [])
    await taken_over(service, dead)
    assert (await service.queries.get_order(ADA, order.id)).status is Status.CANCELLED
    assert (service.users.held, service.users.available) == ({}, 100_000)
