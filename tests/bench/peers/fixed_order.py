"""The order that every peer returns, and its JSON form as the REST contract of the gateway has it."""

from __future__ import annotations

from typing import Any

from shop.order.v1 import order_pb2

USER = "0190a000-0000-7000-8000-000000000001"
STATES = {order_pb2.ORDER_STATUS_PENDING: "pending", order_pb2.ORDER_STATUS_CONFIRMED: "confirmed",
          order_pb2.ORDER_STATUS_REJECTED: "rejected", order_pb2.ORDER_STATUS_CANCELLED: "cancelled"}  # fmt: skip


def order(order_id: str, lines: int = 2) -> order_pb2.Order:
    """Returns an order with that many lines."""
    message = order_pb2.Order(
        id=order_id, user_id=USER, status=order_pb2.ORDER_STATUS_CONFIRMED, currency="EUR", total=700, version=2,
        lines=[order_pb2.OrderLine(sku=f"tea-{n}", quantity=2, unit_price=350) for n in range(lines)],
    )  # fmt: skip
    message.placed_at.FromJsonString("2026-11-29T10:00:00.123456Z")
    return message


def as_json(message: order_pb2.Order) -> dict[str, Any]:
    """Returns the JSON form of an order."""
    return {
        "id": message.id,
        "user_id": message.user_id,
        "status": STATES[message.status],
        "currency": message.currency,
        "lines": [{"sku": x.sku, "quantity": x.quantity, "unit_price": x.unit_price} for x in message.lines],
        "total": message.total,
        "version": message.version,
        "placed_at": message.placed_at.ToJsonString(),
    }
