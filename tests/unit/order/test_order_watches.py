"""A watch of an order: missed events first, then new ones, each once; and every way in which a watch ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from support.waiting import until

from chassis.errors import RpcError
from order_service.order_watches import OrderWatches
from order_service.rpc import OrderRpc
from order_service.settings import Settings
from shop.order.v1 import order_pb2 as wire

from .conftest import ADA, EVE

if TYPE_CHECKING:
    from .conftest import Service

NO_CONTEXT: Any = None
Summary = tuple[int, str | None, int]


def watch(service: Service, order_id: UUID, after: int = 0, user_id: UUID = ADA) -> AsyncGenerator[Any, None]:
    server: Any = OrderRpc(service.commands, service.queries, service.watches)
    asked = wire.WatchOrderRequest(user_id=str(user_id), order_id=str(order_id), after_version=after)
    stream: AsyncGenerator[Any, None] = server.WatchOrder(asked, NO_CONTEXT)
    return stream


def summary(message: wire.WatchOrderResponse) -> Summary:
    """Returns version, event and status of a message."""
    return message.version, message.event.WhichOneof("event"), message.status


async def error_of(stream: AsyncGenerator[Any, None]) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await asyncio.wait_for(anext(stream), 5)
    return caught.value


def change(service: Service, **settings: Any) -> None:
    live = service.process.settings
    live.replace(live.value.model_copy(update=settings))


PLACED = (1, "placed", wire.ORDER_STATUS_PENDING)
CONFIRMED = (2, "confirmed", wire.ORDER_STATUS_CONFIRMED)
CANCELLED = (3, "cancelled", wire.ORDER_STATUS_CANCELLED)


async def test_the_order_of_another_user_is_not_found_before_the_first_change(service: Service) -> None:
    order = await service.place()
    for stream in (watch(service, order.id, user_id=EVE), watch(service, uuid4())):
        found = await error_of(stream)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN")
    assert service.watches.count == 0


@pytest.mark.parametrize("after", [-1, 2, 2**63 - 1])
async def test_a_version_that_the_order_never_had_is_invalid(service: Service, after: int) -> None:
    order = await service.place()
    found = await error_of(watch(service, order.id, after))
    assert (found.code, list(found.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["after_version"])


async def test_missed_events_come_first_and_then_new_ones_until_the_order_is_final(service: Service) -> None:
    order = await service.place()
    stream = watch(service, order.id)
    assert summary(await anext(stream)) == PLACED
    await service.commands.confirm_order(order.id)
    assert summary(await anext(stream)) == CONFIRMED
    await service.commands.cancel_order(ADA, order.id, [])
    assert [summary(message) async for message in stream] == [CANCELLED]


async def test_a_watch_continues_after_the_version_that_the_caller_has(service: Service) -> None:
    order = await service.place()
    await service.commands.confirm_order(order.id)
    stream = watch(service, order.id, after=1)
    assert summary(await anext(stream)) == CONFIRMED
    await stream.aclose()


async def test_a_watch_with_nothing_to_replay_yields_the_current_status_at_once(service: Service) -> None:
    order = await service.place()
    stream = watch(service, order.id, after=1)
    assert summary(await anext(stream)) == (1, None, wire.ORDER_STATUS_PENDING)
    await service.commands.confirm_order(order.id)
    assert summary(await anext(stream)) == CONFIRMED
    await stream.aclose()


async def test_the_watch_of_a_final_order_ends_by_itself(service: Service) -> None:
    order = await service.place()
    await service.commands.reject_order(order.id, "CREDIT_EXCEEDED")
    rejected = (2, "rejected", wire.ORDER_STATUS_REJECTED)
    assert [summary(message) async for message in watch(service, order.id, after=1)] == [rejected]
    state = (2, None, wire.ORDER_STATUS_REJECTED)
    assert [summary(message) async for message in watch(service, order.id, after=2)] == [state]


async def test_an_event_between_replay_and_live_is_neither_skipped_nor_doubled(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, read = await service.place(), service.queries.list_order_events

    async def slowly(user_id: UUID, order_id: UUID) -> Any:
        await service.commands.confirm_order(order_id)  # relayed and in the history
        past = await read(user_id, order_id)
        await service.commands.cancel_order(ADA, order_id, [])  # relayed only
        return past

    service.watches = OrderWatches(service.process, service.store, service.queries)
    monkeypatch.setattr(service.queries, "list_order_events", slowly)
    assert [summary(message) async for message in watch(service, order.id)] == [PLACED, CONFIRMED, CANCELLED]


async def test_all_watches_of_an_order_receive_its_events_and_others_do_not(service: Service) -> None:
    one, other = await service.place("k1"), await service.place("k2")
    streams = [watch(service, one.id), watch(service, one.id), watch(service, other.id)]
    for stream in streams:
        assert summary(await anext(stream)) == PLACED
    await service.commands.confirm_order(one.id)
    await service.commands.confirm_order(other.id)
    for stream in streams:
        assert summary(await anext(stream)) == CONFIRMED
        await stream.aclose()


async def test_a_watch_that_is_too_slow_ends_and_its_caller_can_continue(
    service: Service,
) -> None:
    order = await service.place()
    slow = watch(service, order.id)
    assert summary(await anext(slow)) == PLACED
    quick = watch(service, order.id)
    assert summary(await anext(quick)) == PLACED
    await service.commands.confirm_order(order.id)
    assert summary(await anext(quick)) == CONFIRMED
    await service.commands.cancel_order(ADA, order.id, [])
    assert summary(await anext(quick)) == CANCELLED
    found = await error_of(slow)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_SLOW")
    assert [summary(message) async for message in watch(service, order.id, after=1)] == [CONFIRMED, CANCELLED]


async def test_more_watches_than_the_limit_are_rejected(service: Service, make_settings: Any) -> None:
    settings: Settings = make_settings(max_watches=1)
    service.process.settings.replace(settings)
    service.watches = OrderWatches(service.process, service.store, service.queries)
    order = await service.place()
    first = watch(service, order.id)
    await anext(first)
    found = await error_of(watch(service, order.id))
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHERS_FULL")
    await first.aclose()
    second = watch(service, order.id)
    assert summary(await anext(second)) == PLACED
    await second.aclose()


async def test_an_instance_that_stops_ends_every_watch_at_once_and_accepts_no_new_one(service: Service) -> None:
    order = await service.place()
    stream = watch(service, order.id)
    await anext(stream)
    waiting = asyncio.ensure_future(error_of(stream))
    service.process.stopping.set()
    for found in (await waiting, await error_of(watch(service, order.id))):
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert service.watches.count == 0


async def test_a_watch_ends_when_its_time_is_over(service: Service) -> None:
    change(service, max_watch_seconds=0.05)
    order = await service.place()
    assert [summary(message) async for message in watch(service, order.id)] == [PLACED]


async def test_the_process_subscribes_to_events_only_while_a_watch_is_open(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    following, subscribe = [0], service.store.subscribe

    async def counted(position: int) -> AsyncGenerator[Any, None]:
        following[0] += 1
        try:
            async for found in subscribe(position):
                yield found
        finally:
            following[0] -= 1

    monkeypatch.setattr(service.store, "subscribe", counted)
    order = await service.place()
    for _ in range(2):
        streams = [watch(service, order.id) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        await until("there is one subscription", lambda: following == [1], 5)
        assert service.watches.count == 3
        for stream in streams:
            await stream.aclose()
        await until("there is no subscription", lambda: following == [0], 5)
        assert service.watches.count == 0


async def test_a_watch_is_unavailable_if_the_events_cannot_be_followed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr("order_service.order_watches._READY_SECONDS", 0.05)
    monkeypatch.setattr(service.store, "head", never)
    order = await service.place()
    assert (await error_of(watch(service, order.id))).reason == "UNAVAILABLE"
