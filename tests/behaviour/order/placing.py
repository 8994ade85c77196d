"""Placing, cancelling and listing orders: errors have a cause, repeats no effect, concurrent calls are safe."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from behaviour.order.support.service import ADA, EVE, TEA, Service, SettingsFactory

from chassis.events.port import VersionConflict
from chassis.events.record import RecordedEvent
from order_service.commands import Contended, KeyReused
from order_service.domain import Invalid, Line, OrderClosed, OrderUnknown, Status, VersionMismatch


async def test_an_invalid_order_stores_nothing(service: Service) -> None:
    with pytest.raises(Invalid):
        await service.place("k1", ADA, Line("tea", 0, 1))
    assert await service.store.head() == 0
    assert await service.keys.find(ADA, "k1") is None


async def test_a_key_with_other_content_is_rejected(service: Service) -> None:
    await service.place("k1")
    with pytest.raises(KeyReused):
        await service.place("k1", ADA, Line("tea-1", 3, 150))


async def test_a_key_with_the_same_lines_in_another_sequence_is_rejected(service: Service) -> None:
    cake = Line("cake", 1, 300)
    await service.place("k1", ADA, TEA, cake)
    with pytest.raises(KeyReused):
        await service.place("k1", ADA, cake, TEA)


async def test_a_repeat_returns_the_order_as_it_was_placed(service: Service) -> None:
    first = await service.place("k1")
    await service.commands.confirm_order(first.id)
    assert await service.place("k1") == first
    assert len(await service.types(first.id)) == 2


async def test_duplicates_at_the_same_time_place_one_order(service: Service) -> None:
    orders = await asyncio.gather(*(service.place("k1") for _ in range(10)))
    assert len({order.id for order in orders}) == 1
    assert await service.store.head() == 1


async def test_two_users_may_choose_the_same_key(service: Service) -> None:
    assert (await service.place("k1", ADA)).id != (await service.place("k1", EVE)).id


async def test_a_repeat_returns_the_same_order_even_if_the_rules_have_become_stricter(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await service.place("k1")
    monkeypatch.setattr("order_service.domain.CURRENCIES", frozenset({"USD"}))
    assert await service.place("k1") == first
    with pytest.raises(KeyReused):
        await service.place("k1", ADA, Line("tea-1", 3, 150))
    with pytest.raises(Invalid):
        await service.place("k2")


async def test_a_key_expires_after_the_time_in_the_settings_which_is_a_day_as_shipped(
    service: Service, make_settings: SettingsFactory
) -> None:
    assert await lifetime(service, "k1") == pytest.approx(86_400, abs=10)
    service.settings.replace(make_settings(idempotency_ttl_seconds=3600.0))
    assert await lifetime(service, "k2") == pytest.approx(3600, abs=10)


async def lifetime(service: Service, key: str) -> float:
    """Returns the seconds until a key expires that is used now."""
    await service.place(key)
    known = await service.keys.find(ADA, key)
    assert known is not None
    return (known.expires_at - datetime.now(UTC)).total_seconds()


async def test_a_key_with_a_second_left_still_repeats(service: Service) -> None:
    first = await service.place("k1")
    await service.storage.expire_keys(left=1.0)
    assert await service.place("k1") == first


async def test_an_expired_key_places_a_new_order(service: Service) -> None:
    first = await service.place("k1")
    await service.storage.expire_keys()
    second = await service.place("k1")
    assert second.id != first.id
    assert await service.place("k1") == second


async def test_only_expired_keys_are_purged(service: Service) -> None:
    await service.place("k1")
    await service.storage.expire_keys()
    kept = await service.place("k2")
    assert await service.keys.purge() == 1
    assert await service.keys.purge() == 0
    assert await service.place("k2") == kept


async def test_a_placed_order_is_pending_and_its_id_sorts_by_time(service: Service) -> None:
    first, second = await service.place("k1"), await service.place("k2")
    assert (first.status, first.version, first.total) == (Status.PENDING, 1, 300)
    assert first.id.version == 7
    assert first.id < second.id


async def test_an_unknown_order_is_not_cancelled(service: Service) -> None:
    with pytest.raises(OrderUnknown):
        await service.commands.cancel_order(ADA, uuid4(), [])


async def test_an_order_of_another_user_is_unknown(service: Service) -> None:
    order = await service.place()
    with pytest.raises(OrderUnknown):
        await service.commands.cancel_order(EVE, order.id, [])
    with pytest.raises(OrderUnknown):
        await service.queries.get_order(EVE, order.id)
    with pytest.raises(OrderUnknown):
        await service.queries.list_order_events(EVE, order.id)
    assert (await service.queries.list_orders(EVE, None, None, 10)).orders == []


async def test_a_cancellation_of_another_version_is_rejected(service: Service) -> None:
    order = await service.place()
    await service.commands.confirm_order(order.id)
    with pytest.raises(VersionMismatch):
        await service.commands.cancel_order(ADA, order.id, [1])
    cancelled = await service.commands.cancel_order(ADA, order.id, [2])
    assert (cancelled.status, cancelled.version) == (Status.CANCELLED, 3)


async def test_an_order_is_cancelled_once(service: Service) -> None:
    order = await service.place()
    outcomes = await asyncio.gather(
        *(service.commands.cancel_order(ADA, order.id, []) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(outcome, OrderClosed) for outcome in outcomes) == 4
    assert await service.types(order.id) == ["OrderPlaced", "OrderCancelled"]


async def test_a_command_that_loses_a_race_decides_again_after_the_winner(service: Service) -> None:
    order = await service.place()
    append, waiting = service.store.append, [True]

    async def overtaken(stream: object, version: int, events: list[RecordedEvent], **extra: object) -> None:
        if waiting and waiting.pop():
            await service.commands.confirm_order(order.id)
        await append(order.id, version, events, **extra)

    service.store.append = overtaken  # type: ignore[method-assign, assignment]
    cancelled = await service.commands.cancel_order(ADA, order.id, [])
    assert await service.types(order.id) == ["OrderPlaced", "OrderConfirmed", "OrderCancelled"]
    assert cancelled.version == 3


async def test_a_command_that_loses_every_race_gives_up(service: Service) -> None:
    order = await service.place()

    async def never(stream: object, version: int, events: object, **extra: object) -> None:
        raise VersionConflict(order.id, version)

    service.store.append = never  # type: ignore[method-assign, assignment]
    with pytest.raises(Contended):
        await service.commands.cancel_order(ADA, order.id, [])


async def test_lists_are_newest_first_in_pages_that_do_not_overlap(service: Service) -> None:
    placed = [(await service.place(f"k{number}")).id for number in range(5)]
    await service.project()
    first = await service.queries.list_orders(ADA, None, None, 2)
    second = await service.queries.list_orders(ADA, None, first.orders[-1].id, 2)
    third = await service.queries.list_orders(ADA, None, second.orders[-1].id, 2)
    listed = [order.id for page in (first, second, third) for order in page.orders]
    assert listed == placed[::-1]
    assert (first.more, second.more, third.more) == (True, True, False)


async def test_lists_can_be_filtered_by_status(service: Service) -> None:
    order = await service.place("k1")
    await service.place("k2")
    await service.commands.confirm_order(order.id)
    await service.project()
    page = await service.queries.list_orders(ADA, Status.CONFIRMED, None, 10)
    assert [each.id for each in page.orders] == [order.id]
