"""An Order Service that returns one fixed order: `order_stub.py PORT`. It is the same behind every measured gateway."""

from __future__ import annotations

import sys
from typing import Any

import grpc.aio
import uvloop
from bench.peers.fixed_order import order

from shop.order.v1 import order_pb2
from shop.order.v1.order_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server


class Orders(OrderServiceServicer):
    """Answers GetOrder."""

    async def GetOrder(self, request: Any, _: Any) -> order_pb2.GetOrderResponse:  # noqa: N802 - named by the contract
        return order_pb2.GetOrderResponse(order=order(request.order_id))


async def main(port: int) -> None:
    server = grpc.aio.server()
    add_OrderServiceServicer_to_server(Orders(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
