"""One process that reads an order as gRPC or as REST: `grpc_rest_client.py WAY PORT LINES CALLERS SECONDS`.

WAY is grpc, aiohttp or httpx. Prints one JSON document: requests, seconds, CPU seconds of this process, latencies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import grpc.aio
import httpx
import uvloop

from shop.order.v1.order_pb2 import GetOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub

Read = Callable[[], Awaitable[object]]


async def by_grpc(port: int, lines: str, run: Callable[[Read], Awaitable[None]]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = OrderServiceStub(channel)  # type: ignore[no-untyped-call]
        await run(lambda: stub.GetOrder(GetOrderRequest(order_id=lines), timeout=3))


async def by_aiohttp(port: int, lines: str, run: Callable[[Read], Awaitable[None]]) -> None:
    timeout = aiohttp.ClientTimeout(total=3)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout, raise_for_status=True) as session:

        async def read() -> object:
            async with session.get(f"/v1/orders/{lines}") as reply:
                return await reply.json()

        await run(read)


async def by_httpx(port: int, lines: str, run: Callable[[Read], Awaitable[None]]) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=3, trust_env=False) as client:

        async def read() -> object:
            return (await client.get(f"/v1/orders/{lines}")).raise_for_status().json()

        await run(read)


async def repeated(read: Read, callers: int, seconds: float) -> None:
    await read()
    latencies: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()

    async def caller() -> None:
        while (sent := time.perf_counter()) - began < seconds:
            await read()
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(caller() for _ in range(callers)))
    taken = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    print(json.dumps({"requests": len(latencies), **taken, "latencies": sorted(latencies)}))


if __name__ == "__main__":
    way, port, lines, callers, seconds = sys.argv[1:]
    read_by = {"grpc": by_grpc, "aiohttp": by_aiohttp, "httpx": by_httpx}[way]
    uvloop.run(read_by(int(port), lines, lambda read: repeated(read, int(callers), float(seconds))))
