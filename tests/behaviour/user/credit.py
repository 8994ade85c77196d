"""Credit is held once for an order, released once, and never exceeded."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest
from behaviour.user.service import Service

from user_service.domain import (
    CreditExceeded,
    CurrencyMismatch,
    ReservationConflict,
    ReservationReleased,
    UserUnknown,
)


async def register(service: Service) -> UUID:
    return (await service.commands.register_user("ada@example.com", "Ada", "correct horse")).id


async def available(service: Service, user_id: UUID) -> int:
    return (await service.queries.get_user(user_id)).credit.available


async def test_an_unknown_user_reserves_nothing(service: Service) -> None:
    with pytest.raises(UserUnknown):
        await service.commands.reserve_credit(uuid4(), uuid4(), "EUR", 1)


async def test_more_than_is_available_is_rejected_and_holds_nothing(service: Service) -> None:
    user_id = await register(service)
    with pytest.raises(CreditExceeded):
        await service.commands.reserve_credit(uuid4(), user_id, "EUR", 100_001)
    assert await available(service, user_id) == 100_000


async def test_another_currency_is_rejected(service: Service) -> None:
    user_id = await register(service)
    with pytest.raises(CurrencyMismatch):
        await service.commands.reserve_credit(uuid4(), user_id, "USD", 1)


async def test_the_whole_credit_can_be_held_and_nothing_beyond_it(service: Service) -> None:
    user_id = await register(service)
    await service.commands.reserve_credit(uuid4(), user_id, "EUR", 100_000)
    with pytest.raises(CreditExceeded):
        await service.commands.reserve_credit(uuid4(), user_id, "EUR", 1)


async def test_the_same_reservation_again_holds_nothing_more(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await asyncio.gather(*(service.commands.reserve_credit(order_id, user_id, "EUR", 300) for _ in range(3)))
    assert await available(service, user_id) == 99_700


async def test_another_amount_for_the_same_order_is_rejected(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    with pytest.raises(ReservationConflict):
        await service.commands.reserve_credit(order_id, user_id, "EUR", 301)
    assert await available(service, user_id) == 99_700


async def test_a_repeated_release_gives_back_the_amount_once(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    for _ in range(3):
        await service.commands.release_credit(order_id, user_id)
    assert await available(service, user_id) == 100_000


async def test_a_released_order_cannot_reserve_again(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    await service.commands.release_credit(order_id, user_id)
    with pytest.raises(ReservationReleased):
        await service.commands.reserve_credit(order_id, user_id, "EUR", 300)


async def test_a_reservation_after_its_release_is_rejected(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.release_credit(order_id, user_id)
    with pytest.raises(ReservationReleased):
        await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    assert await available(service, user_id) == 100_000


async def test_a_release_for_an_unknown_user_succeeds(service: Service) -> None:
    await service.commands.release_credit(uuid4(), uuid4())


async def test_an_order_of_another_user_is_neither_reserved_nor_released(service: Service) -> None:
    ada, order_id = await register(service), uuid4()
    eve = (await service.commands.register_user("eve@example.com", "Eve", "correct horse")).id
    await service.commands.reserve_credit(order_id, ada, "EUR", 300)
    with pytest.raises(ReservationConflict):
        await service.commands.reserve_credit(order_id, eve, "EUR", 300)
    with pytest.raises(ReservationConflict):
        await service.commands.release_credit(order_id, eve)
    assert await available(service, ada) == 99_700


async def test_concurrent_reservations_do_not_exceed_the_credit(service: Service) -> None:
    user_id = await register(service)
    reservations = (service.commands.reserve_credit(uuid4(), user_id, "EUR", 15_000) for _ in range(16))
    outcomes = await asyncio.gather(*reservations, return_exceptions=True)
    assert outcomes.count(None) == 6
    assert sum(isinstance(outcome, CreditExceeded) for outcome in outcomes) == 10
    assert await available(service, user_id) == 10_000


async def test_a_reservation_with_a_concurrent_release_holds_nothing(service: Service) -> None:
    user_id, order_ids = await register(service), [uuid4() for _ in range(8)]
    reserved = (service.commands.reserve_credit(order_id, user_id, "EUR", 300) for order_id in order_ids)
    released = (service.commands.release_credit(order_id, user_id) for order_id in order_ids)
    outcomes = await asyncio.gather(*reserved, *released, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), ReservationReleased}
    assert await available(service, user_id) == 100_000
