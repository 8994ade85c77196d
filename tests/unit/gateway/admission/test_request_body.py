"""A body is received before its request takes a permit, and bounded in bytes, in time and in rate."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from support.waiting import until

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

USER = b'{"email":"ada@example.com","name":"Ada","password":"correct horse"}'


def head(path: str, length: int, *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def opened(gateway: RunningGateway, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*gateway.address)
    writer.write(data)
    return reader, writer


async def status(reader: asyncio.StreamReader) -> int:
    return int((await asyncio.wait_for(reader.readline(), 10)).split()[1])


async def trickle(writer: asyncio.StreamWriter, body: bytes, pause: float) -> None:
    for byte in body:
        writer.write(bytes([byte]))
        await asyncio.sleep(pause)


@pytest.mark.parametrize("path", ["/v1/users", "/v1/sessions"])
async def test_an_unfinished_body_takes_no_permit(gateway: RunningGateway, path: str) -> None:
    token = await gateway.token()
    tight = gateway.process.settings.value.limiter.model_copy(update={"calls_at_least": 1, "calls_at_most": 1})
    gateway.change(limiter=tight)
    async with AsyncExitStack() as held:
        for _ in range(5):
            _, writer = await opened(gateway, head(path, 900) + b"{")
            held.callback(writer.close)
        await until("the heads have arrived", lambda: sum(bool(c.http) for c in gateway.server.connections) >= 5)
        assert gateway.requests_in_progress() == 0
        assert (await gateway.http.get("/v1/users/me", headers=token)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40/cancel"])
async def test_a_request_without_a_token_is_401_before_its_body_has_arrived(gateway: RunningGateway, path: str) -> None:
    reader, writer = await opened(gateway, head(path, 900) + b"{")
    assert await status(reader) == 401
    writer.close()


async def test_a_body_is_asked_for_and_awaited(gateway: RunningGateway) -> None:
    """Control of the tests above and below: a body in two parts is complete."""
    reader, writer = await opened(gateway, head("/v1/users", len(USER), "expect: 100-continue"))
    assert await status(reader) == 100
    writer.write(USER[:20])
    await asyncio.sleep(0.2)
    writer.write(USER[20:])
    await reader.readline()
    assert await status(reader) == 201
    writer.close()


async def test_a_body_that_stops_is_408_and_ends_its_connection(gateway: RunningGateway) -> None:
    gateway.change(body_seconds=0.3)
    response = await gateway.raw(head("/v1/users", 9) + b"{")
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in response


async def test_a_body_below_the_rate_is_408_long_before_the_longest_time(gateway: RunningGateway) -> None:
    gateway.change(body_seconds=60.0, body_bytes_per_second=10_000)
    began = time.monotonic()
    reader, writer = await opened(gateway, head("/v1/users", 900))
    sending = asyncio.create_task(trickle(writer, b" " * 900, 0.1))
    assert await status(reader) == 408
    assert time.monotonic() - began < 20
    sending.cancel()
    writer.close()


async def test_a_body_that_keeps_the_rate_may_take_longer_than_the_first_seconds(gateway: RunningGateway) -> None:
    """Control: the same body, with a rate that it keeps."""
    gateway.change(body_seconds=60.0, body_bytes_per_second=1)
    reader, writer = await opened(gateway, head("/v1/users", len(USER)))
    await trickle(writer, USER, 0.05)
    assert await status(reader) == 201
    writer.close()
