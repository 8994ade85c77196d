"""Each toxic of the proxy, measured with an echo server and compared with the same exchange without the toxic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from stack.chaos.proxy import HEALTHY, HOST, Proxy, Toxic
from stack.chaos.proxy_pool import ProxyPool

Connect = Callable[[], Awaitable["Caller"]]
ENOUGH_SECONDS = 20.0
SHORT_SECONDS = 0.3


class Caller:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def echo(self, data: bytes) -> bytes:
        """Sends data and returns as many bytes of the response."""
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), ENOUGH_SECONDS)

    async def receives_nothing(self) -> bool:
        """Returns whether neither a byte nor an end of stream arrives for a short time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), SHORT_SECONDS)
            return False
        return True


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(_echo, HOST, 0)
    made = Proxy(server.sockets[0].getsockname()[:2])
    yield made
    await made.close()
    server.close()


@pytest.fixture
async def connect(proxy: Proxy) -> AsyncIterator[Connect]:
    port, callers = await proxy.open(), []

    async def connected() -> Caller:
        callers.append(Caller(*await asyncio.open_connection(HOST, port)))
        return callers[-1]

    yield connected
    for caller in callers:
        caller.writer.close()


async def test_a_healthy_proxy_forwards_everything_in_order(proxy: Proxy, connect: Connect) -> None:
    data = bytes(range(256)) * 4096
    assert await (await connect()).echo(data) == data


async def test_the_end_of_a_stream_is_forwarded_to_both_sides(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    await caller.echo(b"a")
    caller.writer.write_eof()
    assert await asyncio.wait_for(caller.reader.read(), ENOUGH_SECONDS) == b""


async def test_latency_delays_a_response_and_changes_nothing_else(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    assert await _seconds(caller.echo(b"a")) < 1.0
    proxy.apply(Toxic(latency_seconds=1.0))
    assert await _seconds(caller.echo(b"a")) >= 1.0
    proxy.apply(HEALTHY)
    assert await caller.echo(b"a") == b"a"


async def test_latency_does_not_limit_the_rate_of_responses(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    proxy.apply(Toxic(latency_seconds=0.5))
    began = time.monotonic()
    for _ in range(10):
        caller.writer.write(b"a")
        await asyncio.sleep(0.02)
    await asyncio.wait_for(caller.reader.readexactly(10), ENOUGH_SECONDS)
    assert 0.5 <= time.monotonic() - began < 10 * 0.5


async def test_a_slow_connection_has_a_limited_byte_rate(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    assert await _seconds(caller.echo(b"a" * 2000)) < 1.0
    proxy.apply(Toxic(bytes_per_second=2000))
    assert await _seconds(caller.echo(b"a" * 2000)) >= 1.0


async def test_every_request_is_reset_at_a_hundred_percent(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    proxy.apply(Toxic(reset_share=1.0))
    with pytest.raises(ConnectionResetError):
        await caller.echo(b"a")


async def test_a_share_of_the_requests_is_reset_and_the_others_get_a_response(proxy: Proxy, connect: Connect) -> None:
    proxy.apply(Toxic(reset_share=0.5))
    outcomes = [await _gets_a_response(connect) for _ in range(60)]
    assert 10 < sum(outcomes) < 50  # a fair coin misses this less than once in a million runs


async def test_silent_moves_no_data_and_the_sent_data_arrives_afterwards(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    await caller.echo(b"a")
    proxy.apply(Toxic(silent=True))
    caller.writer.write(b"b")
    assert await caller.receives_nothing()
    late = await connect()
    late.writer.write(b"c")
    assert await late.receives_nothing()
    proxy.apply(HEALTHY)
    assert await asyncio.wait_for(caller.reader.read(1), ENOUGH_SECONDS) == b"b"
    assert await asyncio.wait_for(late.reader.read(1), ENOUGH_SECONDS) == b"c"


async def test_half_open_takes_the_peer_from_old_connections_and_serves_new_ones(
    proxy: Proxy, connect: Connect
) -> None:
    old = await connect()
    await old.echo(b"a")
    proxy.apply(Toxic(half_open=True))
    old.writer.write(b"b" * 1000)
    assert await old.receives_nothing()
    assert await (await connect()).echo(b"c") == b"c"
    proxy.apply(HEALTHY)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(old.reader.read(1), ENOUGH_SECONDS)


async def test_a_missing_target_resets_the_connection(connect: Connect, proxy: Proxy) -> None:
    proxy.target = (HOST, 1)
    with pytest.raises(ConnectionResetError):
        await (await connect()).echo(b"a")


async def test_a_closed_proxy_resets_open_connections_and_refuses_new_ones(proxy: Proxy, connect: Connect) -> None:
    caller = await connect()
    await caller.echo(b"a")
    proxy.apply(Toxic(silent=True))
    await proxy.close()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(caller.reader.read(1), ENOUGH_SECONDS)
    with pytest.raises(ConnectionRefusedError):
        await connect()


async def test_a_pool_opens_disturbs_and_closes_proxies_from_another_thread(proxy: Proxy) -> None:
    proxies = ProxyPool()
    await proxy.open()
    port = await asyncio.to_thread(proxies.open, proxy.target)
    caller = Caller(*await asyncio.open_connection(HOST, port))
    assert await caller.echo(b"a") == b"a"
    await asyncio.to_thread(proxies.apply, Toxic(silent=True))
    caller.writer.write(b"b")
    assert await caller.receives_nothing()
    await asyncio.to_thread(proxies.close, port)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(caller.reader.read(1), ENOUGH_SECONDS)


async def _seconds(work: Awaitable[bytes]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def _gets_a_response(connect: Connect) -> bool:
    try:
        return await (await connect()).echo(b"a") == b"a"
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return False
