"""The pause of placing in Postgres: the service reads what the worker has set, and a pause ends by itself."""

from __future__ import annotations

import asyncio

import pytest
from behaviour.order.support.service import Service
from behaviour.order.support.storages import PostgresStorage
from support.waiting import until

from chassis.errors import RpcError
from order_service.placing_admission import PlacingAdmission
from order_service.storage.placing_pause import PostgresPlacingPause


@pytest.fixture
async def pause(service: Service) -> PostgresPlacingPause:
    assert isinstance(service.storage, PostgresStorage)
    made = PostgresPlacingPause(service.storage.database)
    await made.end()
    return made


async def test_a_pause_has_the_time_that_it_was_extended_by_last(pause: PostgresPlacingPause) -> None:
    assert await pause.left() == 0
    await pause.extend(5)
    await pause.extend(60)
    assert 50 < await pause.left() <= 60
    await pause.end()
    assert await pause.left() == 0


async def test_a_pause_that_is_over_is_none(pause: PostgresPlacingPause) -> None:
    await pause.extend(0.1)
    await asyncio.sleep(0.2)
    assert await pause.left() <= 0


async def test_the_service_rejects_orders_from_the_begin_of_a_pause_to_its_end(
    service: Service, pause: PostgresPlacingPause
) -> None:
    admission = PlacingAdmission(pause, service.settings)

    def rejects() -> bool:
        try:
            admission.check()
        except RpcError as error:
            return error.reason == "BACKLOG"
        return False

    await asyncio.sleep(0.2)
    assert not rejects(), "control: there is no pause"
    await pause.extend(60)
    await until("orders are rejected", rejects, 5)
    await pause.end()
    await until("orders are accepted", lambda: not rejects(), 5)
