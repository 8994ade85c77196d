"""Plain Sanic and grpc.aio, nothing else: `sanic_gateway.py PORT ORDER_SERVICE`. Peer of the gateway."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import grpc.aio
import uvloop
from bench.peers.fixed_order import as_json
from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from shop.order.v1.order_pb2 import GetOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub

app = Sanic("plain", configure_logging=False)
app.config.ACCESS_LOG = False
app.config.MOTD = False


@app.get("/v1/orders/<order_id:str>")
async def get_order(request: Request, order_id: str) -> HTTPResponse:
    """Reads an order."""
    reply: Any = await request.app.ctx.orders.GetOrder(GetOrderRequest(order_id=order_id), timeout=3)
    return json(as_json(reply.order), headers={"etag": f'"{reply.order.version}"'})


async def main(port: int, order_service: str) -> None:
    app.ctx.orders = OrderServiceStub(grpc.aio.insecure_channel(order_service))  # type: ignore[no-untyped-call]
    sock = socket.create_server(("127.0.0.1", port), backlog=1024)
    server: Any = await app.create_server(sock=sock, asyncio_server_kwargs={"start_serving": False})
    await server.startup()
    await server.start_serving()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
