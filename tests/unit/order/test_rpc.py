"""The wire side of the Order Service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest

from chassis.errors import RpcError
from order_service import commands, domain, rpc
from order_service.rpc import OrderRpc
from shop.order.v1 import order_pb2 as wire

from .conftest import ADA

if TYPE_CHECKING:
    from .conftest import Service

NOWHERE: Any = None
PAGE = "A" * 22


@pytest.fixture
def server(service: Service) -> OrderRpc:
    return OrderRpc(service.commands, service.queries, service.watchers)


def request(key: str = "k1", **changes: Any) -> wire.PlaceOrderRequest:
    line = wire.OrderLine(sku="tea", quantity=1, unit_price=5)
    values = {"user_id": str(ADA), "idempotency_key": key, "currency": "EUR", "lines": [line]}
    return wire.PlaceOrderRequest(**(values | changes))


def test_every_refusal_has_a_reason_of_its_own() -> None:
    refusals = {*domain.Refusal.__subclasses__(), commands.KeyReused, commands.Contended}
    assert refusals == set(rpc._REASONS)
    reasons = [reason for _, reason in rpc._REASONS.values()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("key", ["", "k" * 201, "k\x00", "two words", "ü"])
async def test_an_order_without_a_usable_key_is_refused(server: OrderRpc, key: str) -> None:
    with pytest.raises(RpcError) as error:
        await server.PlaceOrder(request(key), NOWHERE)
    assert error.value.reason == "IDEMPOTENCY_KEY_MISSING"


@pytest.mark.parametrize("token", ["x", "!!!!", "AAAA", "%%%", "ü", "a" * 500, f"{PAGE}==", f"{PAGE}\n",
                                   f"!{PAGE}", f"{PAGE[:-1]}B", "_" * 21 + "x"])  # fmt: skip
async def test_a_page_token_of_somewhere_else_is_invalid(server: OrderRpc, token: str) -> None:
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_token=token), NOWHERE)
    assert (error.value.code, list(error.value.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_page_token_is_the_one_that_was_given(server: OrderRpc) -> None:
    await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_token=PAGE), NOWHERE)


async def test_a_list_of_a_status_that_is_not_known_is_invalid_and_not_a_list_of_all(server: OrderRpc) -> None:
    await server.PlaceOrder(request(), NOWHERE)
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), status=99), NOWHERE)  # type: ignore[arg-type]
    assert (error.value.code, list(error.value.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["status"])


@pytest.mark.parametrize("size", [-1, 101])
async def test_a_page_of_an_absurd_size_is_invalid(server: OrderRpc, size: int) -> None:
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_size=size), NOWHERE)
    assert list(error.value.fields) == ["page_size"]


async def test_an_unknown_order_is_not_found(server: OrderRpc) -> None:
    with pytest.raises(RpcError) as error:
        await server.GetOrder(wire.GetOrderRequest(user_id=str(ADA), order_id=str(uuid4())), NOWHERE)
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN")


async def test_pages_follow_each_other_by_token(server: OrderRpc) -> None:
    for number in range(3):
        await server.PlaceOrder(request(f"k{number}"), NOWHERE)
    first = await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_size=2), NOWHERE)
    second = await server.ListOrders(
        wire.ListOrdersRequest(user_id=str(ADA), page_size=2, page_token=first.next_page_token), NOWHERE
    )
    assert (len(first.orders), len(second.orders), second.next_page_token) == (2, 1, "")


async def test_every_kind_of_event_comes_over_the_wire(server: OrderRpc, service: Service) -> None:
    async def reject(order_id: UUID) -> object:
        return await service.commands.reject_order(order_id, "CREDIT_EXCEEDED")

    kinds = set()
    for number, settle in enumerate((service.commands.confirm_order, reject)):
        order = (await server.PlaceOrder(request(f"k{number}"), NOWHERE)).order
        await settle(UUID(order.id))
        user, name = str(ADA), order.id
        if number == 0:
            await server.CancelOrder(wire.CancelOrderRequest(user_id=user, order_id=name), NOWHERE)
        asked = wire.ListOrderEventsRequest(user_id=user, order_id=name)
        events = (await server.ListOrderEvents(asked, NOWHERE)).events
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        kinds |= {event.WhichOneof("event") for event in events}
    assert kinds == {"placed", "confirmed", "rejected", "cancelled"}
