"""The findings of a consistency check of the Order Service's own store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from chassis.events.record import RecordedEvent
from order_service.operations.order_check import OrderHistory, Snapshot, advance, duplicates, findings

from ..conftest import ADA, EVE, Service
from ..storage import recorded_logs

DAY = timedelta(days=1)
EMPTY = Snapshot({"orders": 0, "outbox": 10}, {}, {}, [])


async def events_of(service: Service) -> list[RecordedEvent]:
    order = await service.place()
    await service.work()
    return await service.store.read(order.id)


def folded(*events: RecordedEvent) -> OrderHistory:
    history = OrderHistory()
    for position, event in enumerate(events, 1):
        advance(history, position, event)
    return history


def rules(history: OrderHistory, snapshot: Snapshot = EMPTY) -> list[str]:
    return [rule for _, rule, *_ in findings({UUID(int=1): history}, snapshot)]


async def test_a_sound_history_has_no_findings(service: Service) -> None:
    history = folded(*await events_of(service))
    assert history.order is not None
    assert rules(history) == []


async def test_a_history_without_its_beginning_or_with_an_event_twice_is_broken(service: Service) -> None:
    first, second = await events_of(service)
    assert rules(folded(second)) == ["history"]
    assert "history" in rules(folded(first, first))


async def test_an_event_that_may_not_follow_is_named(service: Service) -> None:
    first, second = await events_of(service)
    again = RecordedEvent(second.stream, 3, second.type, second.data, second.meta, second.schema)
    assert folded(first, second, again).broken == ("OrderConfirmed after confirmed", "one of ['OrderCancelled']")


async def test_an_event_of_a_newer_version_is_named_as_unreadable(service: Service) -> None:
    first, _ = await events_of(service)
    newer = RecordedEvent(first.stream, 1, first.type, first.data, first.meta, 99)
    broken = folded(newer).broken
    assert broken is not None
    assert broken[0].startswith("unreadable")


async def test_a_pending_order_needs_an_outbox_entry_once_the_projection_has_its_event(
    service: Service,
) -> None:
    history = folded((await events_of(service))[0])
    assert rules(history) == ["outbox"]
    assert rules(history, Snapshot({"orders": 0, "outbox": 10}, {}, {1: uuid4()}, [])) == []
    assert rules(history, Snapshot({"orders": 0, "outbox": 0}, {}, {}, [])) == []


async def test_a_key_of_another_user_is_named(service: Service) -> None:
    history = folded(*await events_of(service))
    assert rules(history, Snapshot({"orders": 0, "outbox": 10}, {}, {}, [(uuid4(), "k", UUID(int=1))])) == ["key"]
    assert rules(history, Snapshot({"orders": 0, "outbox": 10}, {}, {}, [(ADA, "k", UUID(int=1))])) == []


async def two_orders_of_one_key(service: Service) -> dict[UUID, OrderHistory]:
    for user_id, key in ((ADA, "k1"), (ADA, "k2"), (EVE, "k1"), (ADA, "k1")):
        await service.place(key, user_id)
        await service.storage.expire_keys()
    return {event.stream: folded(event) for _, event in await service.store.since(0)}


async def test_two_orders_of_one_key_are_named_even_if_the_key_was_deleted(service: Service) -> None:
    histories = await two_orders_of_one_key(service)
    first, *_, second = histories
    ((named, rule, found, *_),) = duplicates(histories, DAY)
    assert (named, rule) == (second, "doubled")
    assert f"placed by the same key as order {first}" in found


@pytest.mark.parametrize(
    ("later", "wrong"), [(DAY - timedelta(minutes=1), 1), (DAY - timedelta(seconds=5), 0), (DAY, 0)]
)
async def test_an_expired_key_may_place_again(service: Service, later: timedelta, wrong: int) -> None:
    histories = await two_orders_of_one_key(service)
    first, *_, second = [history.order for history in histories.values()]
    assert first is not None
    assert second is not None
    histories[second.id].order = replace(second, placed_at=first.placed_at + later)
    assert len(list(duplicates(histories, DAY))) == wrong


async def test_orders_without_a_recorded_command_are_never_duplicates() -> None:
    old = recorded_logs.load("v1-placed").events()[0]
    assert list(duplicates({uuid4(): folded(old), uuid4(): folded(old)}, DAY)) == []
