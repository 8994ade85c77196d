"""The findings of a consistency check of the Order Service's own store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chassis.events.record import RecordedEvent
from order_service.operations.order_check import OrderHistory, Positions, StoredOrder, duplicate, findings, fold

from ..conftest import ADA, Service

DAY = timedelta(days=1)
POSITIONS = {"orders": 0, "outbox": 10}


async def events_of(service: Service) -> list[RecordedEvent]:
    order = await service.place()
    await service.work()
    return await service.store.read(order.id)


def folded(*events: RecordedEvent) -> OrderHistory:
    return fold(list(enumerate(events, 1)), POSITIONS)


def rules(history: OrderHistory | None, positions: Positions = POSITIONS, **stored: Any) -> list[str]:
    return [rule for _, rule, *_ in findings(StoredOrder(UUID(int=1), history, **stored), positions)]


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
    assert rules(history, outbox={1}) == []
    assert rules(history, {"orders": 0, "outbox": 0}) == []


async def test_a_key_of_another_user_is_named(service: Service) -> None:
    history = folded(*await events_of(service))
    assert rules(history, keys=[(uuid4(), "k")]) == ["key"]
    assert rules(history, keys=[(ADA, "k")]) == []


async def test_two_keys_of_one_order_and_a_key_without_an_order_are_named(service: Service) -> None:
    history = folded(*await events_of(service))
    assert rules(history, keys=[(ADA, "k"), (ADA, "l")]) == ["key"]
    assert rules(None, keys=[(ADA, "k")]) == ["key"]


async def test_a_row_is_compared_at_the_position_of_the_projection(service: Service) -> None:
    events = list(enumerate(await events_of(service), 1))
    behind, current = (fold(events, {"orders": position}) for position in (1, 2))
    assert behind.row
    assert behind.row != current.row
    assert rules(current, row=current.row) == []
    assert rules(current, row=behind.row) == ["read table"]
    assert rules(None, row=current.row) == ["read table"]


@pytest.mark.parametrize(
    ("later", "wrong"), [(DAY - timedelta(minutes=1), True), (DAY - timedelta(seconds=5), False), (DAY, False)]
)
async def test_an_expired_key_may_place_again(service: Service, later: timedelta, wrong: bool) -> None:
    first = folded((await events_of(service))[0]).order
    assert first is not None
    second = replace(first, id=uuid4(), placed_at=first.placed_at + later)
    found = duplicate(first, second, DAY)
    assert (found is not None) is wrong
    if found:
        assert (found[0], found[1]) == (second.id, "doubled")
        assert f"placed by the same key as order {first.id}" in found[2]
