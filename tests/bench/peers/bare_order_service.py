"""A bare grpc.aio handler with one psycopg SELECT: `bare_order_service.py PORT DSN`. Peer of the Order Service.

It reads the rows of the Order Service and returns the same order, and does nothing else.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from uuid import UUID

import grpc.aio
import uvloop
from psycopg_pool import AsyncConnectionPool

from shop.order.v1 import order_pb2
from shop.order.v1.order_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server

SELECT = "SELECT topic, state FROM events WHERE originator_id = %s ORDER BY originator_version"
AFTER = {"OrderConfirmed": order_pb2.ORDER_STATUS_CONFIRMED, "OrderRejected": order_pb2.ORDER_STATUS_REJECTED,
         "OrderCancelled": order_pb2.ORDER_STATUS_CANCELLED}  # fmt: skip


class Orders(OrderServiceServicer):
    """Answers GetOrder."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def GetOrder(self, request: Any, context: Any) -> order_pb2.GetOrderResponse:  # noqa: N802
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(SELECT, (UUID(request.order_id),))).fetchall()
        placed = json.loads(rows[0][1])
        data = placed["data"]
        if data["user_id"] != request.user_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such order")
        order = order_pb2.Order(
            id=request.order_id,
            user_id=data["user_id"],
            status=AFTER[rows[-1][0]] if len(rows) > 1 else order_pb2.ORDER_STATUS_PENDING,
            currency=data["currency"],
            lines=[order_pb2.OrderLine(**line) for line in data["lines"]],
            total=data["total"],
            version=len(rows),
        )
        order.placed_at.FromJsonString(placed["meta"]["occurred_at"])
        return order_pb2.GetOrderResponse(order=order)


async def main(port: int, dsn: str) -> None:
    async with AsyncConnectionPool(dsn, min_size=5, max_size=5, kwargs={"autocommit": True}) as pool:
        server = grpc.aio.server()
        add_OrderServiceServicer_to_server(Orders(pool), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
