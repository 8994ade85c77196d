"""An order of a user who does not exist is accepted, because placing needs no User Service, and rejected later."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from behaviour.user import service as user_support

from chassis.settings import Live
from order_service.rpc import OrderRpc
from order_service.worker.user_credit import GrpcUserCredit
from shop.order.v1 import order_pb2 as wire
from user_service.rpc import UserRpc

from .conftest import Service
from .loopback import Loopback

NO_CONTEXT: Any = None


async def test_an_order_of_an_unknown_user_is_accepted_and_then_rejected_with_the_reason(service: Service) -> None:
    users = user_support.Service(Live(user_support.shipped()))
    service.process_manager._user_credit = GrpcUserCredit(Loopback(UserRpc(users.commands, users.queries)))
    nobody, line = uuid4(), wire.OrderLine(sku="tea", quantity=1, unit_price=5)
    rpc = OrderRpc(service.commands, service.queries, service.watches)
    request = wire.PlaceOrderRequest(user_id=str(nobody), idempotency_key="k", currency="EUR", lines=[line])
    placed = (await rpc.PlaceOrder(request, NO_CONTEXT)).order
    assert placed.status == wire.ORDER_STATUS_PENDING
    for _ in range(2):
        await service.work()
    events = await rpc.ListOrderEvents(wire.ListOrderEventsRequest(user_id=str(nobody), order_id=placed.id), NO_CONTEXT)
    assert [event.WhichOneof("event") for event in events.events] == ["placed", "rejected"]
    assert events.events[-1].rejected.reason == "USER_UNKNOWN"
    assert await service.storage.pending_entries() == 0
