"""Streams of answers through the channel, against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from chassis.errors import RpcError, unavailable

from ..backends import SETTINGS, World, refusal, settings
from ..echo_service import echo, never


async def test_a_stream_arrives_and_ends(world: World) -> None:
    await world.start(echo)
    assert await world.stub.count(3) == ["0", "1", "2"]
    assert await world.stub.count(0) == []


async def test_a_stream_with_nobody_behind_it_is_refused(world: World) -> None:
    world.announce()
    assert (await refusal(world.stub.count(3))).code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_breaks_says_so_after_what_it_gave(world: World) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise unavailable("DATABASE_UNAVAILABLE", "later", 1.0)

    await world.start(fail)
    stream = world.stub.Count(StringValue(value="2"))
    assert [(await anext(stream)).value for _ in range(2)] == ["0", "1"]
    with pytest.raises(RpcError, match="later"):
        await anext(stream)


async def test_a_stream_left_early_frees_its_instance(world: World) -> None:
    await world.start(never)
    stream = world.stub.Count(StringValue(value="2"))
    assert (await anext(stream)).value == "0"
    await stream.aclose()
    assert [peer.outstanding for peer in world.channel.balancer._peers.values()] == [0]


async def test_a_stream_that_does_not_begin_in_time_fails_and_its_failures_open_the_breaker(world: World) -> None:
    world.settings = settings(deadline_seconds=0.05, breaker__reset_seconds=60.0)
    await world.start(never)
    for _ in range(SETTINGS.breaker.minimum_calls):
        assert (await refusal(world.stub.count(0))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert world.state() == "open"


async def test_a_stream_that_has_begun_may_be_silent_for_longer_than_a_call_may_take(world: World) -> None:
    async def later(_text: str, _context: Any) -> str:
        await asyncio.sleep(SETTINGS.deadline_seconds + 0.5)
        return ""

    await world.start(later)
    assert await world.stub.count(1) == ["0"]
