"""Events of every earlier schema are decoded; an event of a newer version raises an error that names it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chassis.errors import RpcError
from chassis.events.record import RecordedEvent
from order_service.rpc import OrderRpc
from order_service.storage import event_codec, upcasts
from order_service.storage.upcasts import CURRENT, UNKNOWN, UnknownEvent, upcast
from shop.order.v1 import order_pb2 as wire

from ..conftest import ADA, EVE
from . import recorded_logs

if TYPE_CHECKING:
    from ..conftest import Service

NEWER = [("OrderPlaced", 3), ("OrderCancelled", 99), ("OrderConfirmed", 0), ("OrderShipped", 1)]


def recorded() -> list[tuple[str, RecordedEvent]]:
    return [(name, event) for name in recorded_logs.names() for event in recorded_logs.load(name).events()]


@pytest.mark.parametrize(("kind", "schema"), NEWER)
def test_an_event_of_a_newer_version_raises_an_error_that_names_it(kind: str, schema: int) -> None:
    event = replace(recorded_logs.load("v2-placed").events()[0], type=kind, schema=schema)
    with pytest.raises(UnknownEvent, match=f"{kind} of schema {schema}, version 1 of order {event.stream}"):
        event_codec.fold([event])


async def test_a_caller_gets_an_error_of_its_own_for_an_order_of_a_newer_version(service: Service) -> None:
    order = await service.place()
    past = await service.store.read(order.id)
    await service.store.append(order.id, 1, [replace(past[0], version=2, type="OrderShipped")])
    server, asked = (
        OrderRpc(service.commands, service.queries, service.watches),
        {"user_id": str(ADA), "order_id": str(order.id)},
    )
    calls = [
        (server.GetOrder, wire.GetOrderRequest(**asked)),
        (server.CancelOrder, wire.CancelOrderRequest(**asked)),
        (server.ListOrderEvents, wire.ListOrderEventsRequest(**asked)),
    ]
    for call, request in calls:
        with pytest.raises(RpcError, match="OrderShipped") as caught:
            await call(request, None)  # type: ignore[operator]
        assert caught.value.reason == "HISTORY_NEWER"
    with pytest.raises(RpcError, match="no such order"):
        await server.GetOrder(wire.GetOrderRequest(user_id=str(EVE), order_id=str(order.id)), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", recorded_logs.names())
def test_a_log_of_an_earlier_version_folds_to_the_order_of_that_time(name: str) -> None:
    log = recorded_logs.load(name)
    assert event_codec.fold(log.events()) == log.order


@pytest.mark.parametrize("name", recorded_logs.names())
def test_a_log_is_named_after_the_schema_it_was_written_in(name: str) -> None:
    schemas = {f"v{event.schema}" for event in recorded_logs.load(name).events()}
    assert schemas == {name.partition("-")[0]}


def test_there_is_a_log_of_every_type_in_each_of_its_schemas() -> None:
    kept = {(event.type, event.schema) for _, event in recorded()}
    assert kept == {(kind, schema) for kind, current in CURRENT.items() for schema in range(1, current + 1)}


def test_every_old_event_has_the_current_shape_after_its_upcast() -> None:
    shapes: dict[str, set[tuple[frozenset[str], frozenset[str]]]] = {}
    for _, event in recorded():
        now = upcast(event)
        assert now.schema == CURRENT[event.type]
        assert upcast(now) == now
        shapes.setdefault(event.type, set()).add((frozenset(now.data), frozenset(now.meta)))
    assert {kind: len(found) for kind, found in shapes.items()} == dict.fromkeys(CURRENT, 1)


async def test_a_new_event_has_the_shape_of_the_log_of_its_schema(service: Service) -> None:
    """A change of an event needs a new schema number, an upcast step and a log."""
    kept = {
        event.type: (set(event.data), set(event.meta)) for _, event in recorded() if event.schema == CURRENT[event.type]
    }
    confirmed, rejected = await service.place("k1"), await service.place("k2")
    await service.commands.confirm_order(confirmed.id)
    await service.commands.cancel_order(ADA, confirmed.id, [])
    await service.commands.reject_order(rejected.id, "CREDIT_EXCEEDED")
    made = [event for _, event in await service.store.since(0)]
    assert {event.type: (set(event.data), set(event.meta)) for event in made} == kept
    assert all(event.schema == CURRENT[event.type] for event in made)


def test_an_upcast_does_not_invent_missing_values() -> None:
    old = {event.type: upcast(event) for name, event in recorded() if event.schema == 1}
    assert {kind: event.meta["actor"] for kind, event in old.items()} == {
        "OrderPlaced": old["OrderPlaced"].data["user_id"],
        "OrderConfirmed": event_codec.PROCESS_MANAGER,
        "OrderRejected": event_codec.PROCESS_MANAGER,
        "OrderCancelled": UNKNOWN,
    }
    assert {event.meta["command_id"] for event in old.values()} == {UNKNOWN}
    assert old["OrderCancelled"].data == {"reason": "REQUESTED"}


def test_an_upcast_does_not_change_the_recorded_event() -> None:
    event = recorded_logs.load("v1-cancelled-while-pending").events()[-1]
    before = dict(event.data), dict(event.meta)
    assert upcasts.upcast(event) != event
    assert (event.data, event.meta) == before
