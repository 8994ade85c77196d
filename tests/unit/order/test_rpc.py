"""The gRPC servicer of the Order Service."""

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

NO_CONTEXT: Any = None
PAGE = "A" * 22


@pytest.fixture
def server(service: Service) -> OrderRpc:
    return OrderRpc(service.commands, service.queries, service.watches)


def request(key: str = "k1", **changes: Any) -> wire.PlaceOrderRequest:
    line = wire.OrderLine(sku="tea", quantity=1, unit_price=5)
    values = {"user_id": str(ADA), "idempotency_key": key, "currency": "EUR", "lines": [line]}
    return wire.PlaceOrderRequest(**(values | changes))


def test_every_domain_error_has_a_reason_of_its_own() -> None:
    errors = {*domain.DomainError.__subclasses__(), commands.KeyReused, commands.Contended}
    assert errors == set(rpc._REASONS)
    reasons = [reason for _, reason in rpc._REASONS.values()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("key", ["", "k" * 201, "k\x00", "two words", "ü"])
async def test_an_order_without_a_valid_key_is_rejected(server: OrderRpc, key: str) -> None:
    with pytest.raises(RpcError) as error:
        await server.PlaceOrder(request(key), NO_CONTEXT)
    assert error.value.reason == "IDEMPOTENCY_KEY_MISSING"


@pytest.mark.parametrize("token", ["x", "!!!!", "AAAA", "%%%", "ü", "a" * 500, f"{PAGE}==", f"{PAGE}\n",
                                   f"!{PAGE}", f"{PAGE[:-1]}B", "_" * 21 + "x"])  # fmt: skip
async def test_a_page_token_that_was_not_returned_is_invalid(server: OrderRpc, token: str) -> None:
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_token=token), NO_CONTEXT)
    assert (error.value.code, list(error.value.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_page_token_that_was_returned_is_valid(server: OrderRpc) -> None:
    await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_token=PAGE), NO_CONTEXT)


async def test_an_unknown_status_is_invalid_and_does_not_list_all_orders(server: OrderRpc) -> None:
    await server.PlaceOrder(request(), NO_CONTEXT)
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), status=99), NO_CONTEXT)  # type: ignore[arg-type]
    assert (error.value.code, list(error.value.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["status"])


@pytest.mark.parametrize("size", [-1, 101])
async def test_a_page_size_out_of_range_is_invalid(server: OrderRpc, size: int) -> None:
    with pytest.raises(RpcError) as error:
        await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_size=size), NO_CONTEXT)
    assert list(error.value.fields) == ["page_size"]


async def test_an_unknown_order_is_not_found(server: OrderRpc) -> None:
    with pytest.raises(RpcError) as error:
        await server.GetOrder(wire.GetOrderRequest(user_id=str(ADA), order_id=str(uuid4())), NO_CONTEXT)
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN")


async def test_pages_follow_each_other_by_token(server: OrderRpc) -> None:
    for number in range(3):
        await server.PlaceOrder(request(f"k{number}"), NO_CONTEXT)
    first = await server.ListOrders(wire.ListOrdersRequest(user_id=str(ADA), page_size=2), NO_CONTEXT)
    second = await server.ListOrders(
        wire.ListOrdersRequest(user_id=str(ADA), page_size=2, page_token=first.next_page_token), NO_CONTEXT
    )
    assert (len(first.orders), len(second.orders), second.next_page_token) == (2, 1, "")


async def test_every_kind_of_event_has_a_message(server: OrderRpc, service: Service) -> None:
    async def reject(order_id: UUID) -> object:
        return await service.commands.reject_order(order_id, "CREDIT_EXCEEDED")

    kinds = set()
    for number, settle in enumerate((service.commands.confirm_order, reject)):
        order = (await server.PlaceOrder(request(f"k{number}"), NO_CONTEXT)).order
        await settle(UUID(order.id))
        user, name = str(ADA), order.id
        if number == 0:
            await server.CancelOrder(wire.CancelOrderRequest(user_id=user, order_id=name), NO_CONTEXT)
        asked = wire.ListOrderEventsRequest(user_id=user, order_id=name)
        events = (await server.ListOrderEvents(asked, NO_CONTEXT)).events
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        kinds |= {event.WhichOneof("event") for event in events}
    assert kinds == {"placed", "confirmed", "rejected", "cancelled"}
