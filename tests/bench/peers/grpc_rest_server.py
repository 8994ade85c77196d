"""One process that serves the same order as gRPC and as REST with JSON: `grpc_rest_server.py GRPC_PORT REST_PORT`.

The id of the order is the number of its lines.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import grpc.aio
import uvloop
from bench.peers.fixed_order import as_json, order
from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from shop.order.v1 import order_pb2
from shop.order.v1.order_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server

app = Sanic("rest", configure_logging=False)
app.config.ACCESS_LOG = False
app.config.MOTD = False


@app.get("/v1/orders/<order_id:str>")
async def get_order(_: Request, order_id: str) -> HTTPResponse:
    """Reads an order."""
    return json(as_json(order(order_id, int(order_id))))


class Orders(OrderServiceServicer):
    """Answers GetOrder."""

    async def GetOrder(self, request: Any, _: Any) -> order_pb2.GetOrderResponse:  # noqa: N802
        return order_pb2.GetOrderResponse(order=order(request.order_id, int(request.order_id)))


async def main(grpc_port: int, rest_port: int) -> None:
    grpc_server = grpc.aio.server()
    add_OrderServiceServicer_to_server(Orders(), grpc_server)
    grpc_server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await grpc_server.start()
    sock = socket.create_server(("127.0.0.1", rest_port))
    server: Any = await app.create_server(sock=sock, asyncio_server_kwargs={"start_serving": False})
    await server.startup()
    await server.start_serving()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
