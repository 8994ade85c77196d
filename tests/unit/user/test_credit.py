"""Credit: held once for an order, given back once, never more than there is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_service import domain
from user_service.domain import (
    Credit,
    CreditExceeded,
    CurrencyMismatch,
    Refusal,
    Reservation,
    ReservationConflict,
    ReservationReleased,
    State,
    UserUnknown,
)

if TYPE_CHECKING:
    from .conftest import Service

USER = UUID(int=1)


async def register(service: Service) -> UUID:
    return (await service.commands.register_user("ada@example.com", "Ada", "correct horse")).id


async def available(service: Service, user_id: UUID) -> int:
    return (await service.queries.get_user(user_id)).credit.available


async def test_an_unknown_user_reserves_nothing(service: Service) -> None:
    with pytest.raises(UserUnknown):
        await service.commands.reserve_credit(uuid4(), uuid4(), "EUR", 1)


async def test_more_than_is_left_is_refused_and_holds_nothing(service: Service) -> None:
    user_id = await register(service)
    with pytest.raises(CreditExceeded):
        await service.commands.reserve_credit(uuid4(), user_id, "EUR", 100_001)
    assert await available(service, user_id) == 100_000


async def test_another_currency_is_refused(service: Service) -> None:
    user_id = await register(service)
    with pytest.raises(CurrencyMismatch):
        await service.commands.reserve_credit(uuid4(), user_id, "USD", 1)


async def test_all_of_the_credit_can_be_held_and_then_not_one_cent_more(service: Service) -> None:
    user_id = await register(service)
    await service.commands.reserve_credit(uuid4(), user_id, "EUR", 100_000)
    with pytest.raises(CreditExceeded):
        await service.commands.reserve_credit(uuid4(), user_id, "EUR", 1)


async def test_the_same_reservation_again_holds_nothing_more(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await asyncio.gather(*(service.commands.reserve_credit(order_id, user_id, "EUR", 300) for _ in range(3)))
    assert await available(service, user_id) == 99_700


async def test_another_amount_for_the_same_order_is_refused(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    with pytest.raises(ReservationConflict):
        await service.commands.reserve_credit(order_id, user_id, "EUR", 301)
    assert await available(service, user_id) == 99_700


async def test_a_release_gives_back_once_however_often_it_is_asked(service: Service) -> None:
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


async def test_a_release_that_came_first_refuses_the_late_reservation(service: Service) -> None:
    user_id, order_id = await register(service), uuid4()
    await service.commands.release_credit(order_id, user_id)
    with pytest.raises(ReservationReleased):
        await service.commands.reserve_credit(order_id, user_id, "EUR", 300)
    assert await available(service, user_id) == 100_000


async def test_a_release_for_an_unknown_user_is_fine(service: Service) -> None:
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


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 120)))


@given(st.integers(0, 200), steps)
def test_whatever_is_asked_the_held_sum_is_exact_and_within_the_limit(
    limit: int, asked: list[tuple[bool, int, int]]
) -> None:
    kept: dict[UUID, Reservation] = {}
    for reserve, number, amount in asked:
        order_id = UUID(int=number)
        held = sum(reservation.holds for reservation in kept.values())
        wanted = Reservation(order_id, USER, amount, State.HELD)
        try:
            kept[order_id] = (
                domain.reserve(Credit("EUR", limit, held), kept.get(order_id), wanted, "EUR")
                if reserve
                else domain.release(kept.get(order_id), order_id, USER)
            )
        except Refusal:
            continue
        assert 0 <= sum(reservation.holds for reservation in kept.values()) <= limit
