"""What an audit of the Order Service's own store notices, told event by event."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from chassis.events.record import RecordedEvent
from order_service.operations.consistency_check import Kept, Story, doubled, findings, tell

from ..conftest import ADA, EVE, Service
from ..storage import recorded_logs

DAY = timedelta(days=1)
NOTHING = Kept({"orders": 0, "errands": 10}, {}, {}, [])


async def history_of(service: Service) -> list[RecordedEvent]:
    order = await service.place()
    await service.work()
    return await service.store.read(order.id)


def told(*events: RecordedEvent) -> Story:
    story = Story()
    for position, event in enumerate(events, 1):
        tell(story, position, event)
    return story


def rules(story: Story, kept: Kept = NOTHING) -> list[str]:
    return [rule for _, rule, *_ in findings({UUID(int=1): story}, kept)]


async def test_a_whole_history_has_no_findings(service: Service) -> None:
    story = told(*await history_of(service))
    assert story.order is not None
    assert rules(story) == []


async def test_a_history_without_its_beginning_or_with_an_event_twice_is_broken(service: Service) -> None:
    first, second = await history_of(service)
    assert rules(told(second)) == ["history"]
    assert "history" in rules(told(first, first))


async def test_an_event_that_may_not_follow_is_named(service: Service) -> None:
    first, second = await history_of(service)
    again = RecordedEvent(second.stream, 3, second.type, second.data, second.meta, second.schema)
    assert told(first, second, again).broken == ("OrderConfirmed after confirmed", "one of ['OrderCancelled']")


async def test_an_event_of_a_newer_version_is_named_as_unreadable(service: Service) -> None:
    first, _ = await history_of(service)
    newer = RecordedEvent(first.stream, 1, first.type, first.data, first.meta, 99)
    broken = told(newer).broken
    assert broken is not None
    assert broken[0].startswith("unreadable")


async def test_a_pending_order_needs_an_errand_unless_the_projection_has_not_come_there_yet(service: Service) -> None:
    story = told((await history_of(service))[0])
    assert rules(story) == ["errand"]
    assert rules(story, Kept({"orders": 0, "errands": 10}, {}, {1: uuid4()}, [])) == []
    assert rules(story, Kept({"orders": 0, "errands": 0}, {}, {}, [])) == []


async def test_a_key_of_another_user_is_named(service: Service) -> None:
    story = told(*await history_of(service))
    assert rules(story, Kept({"orders": 0, "errands": 10}, {}, {}, [(uuid4(), "k", UUID(int=1))])) == ["key"]
    assert rules(story, Kept({"orders": 0, "errands": 10}, {}, {}, [(ADA, "k", UUID(int=1))])) == []


async def two_orders_of_one_key(service: Service) -> dict[UUID, Story]:
    for user_id, key in ((ADA, "k1"), (ADA, "k2"), (EVE, "k1"), (ADA, "k1")):
        await service.place(key, user_id)
        await service.storage.expire_keys()
    return {event.stream: told(event) for _, event in await service.store.since(0)}


async def test_two_orders_of_one_key_are_named_whatever_became_of_the_key(service: Service) -> None:
    stories = await two_orders_of_one_key(service)
    first, *_, second = stories
    ((named, rule, found, *_),) = doubled(stories, DAY)
    assert (named, rule) == (second, "doubled")
    assert f"placed by the same key as order {first}" in found


@pytest.mark.parametrize(
    ("later", "wrong"), [(DAY - timedelta(minutes=1), 1), (DAY - timedelta(seconds=5), 0), (DAY, 0)]
)
async def test_a_key_that_has_had_its_time_may_place_again(service: Service, later: timedelta, wrong: int) -> None:
    stories = await two_orders_of_one_key(service)
    first, *_, second = [story.order for story in stories.values()]
    assert first is not None
    assert second is not None
    stories[second.id].order = replace(second, placed_at=first.placed_at + later)
    assert len(list(doubled(stories, DAY))) == wrong


async def test_orders_from_before_commands_were_recorded_are_nobodys_repeat() -> None:
    old = recorded_logs.load("v1-placed").events()[0]
    assert list(doubled({uuid4(): told(old), uuid4(): told(old)}, DAY)) == []
