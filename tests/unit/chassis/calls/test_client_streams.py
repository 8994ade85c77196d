"""Streams of answers through the channel, against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from chassis.errors import RpcError, unavailable

from ..backends import BREAKER_RULES, SETTINGS, Backends, error_of
from ..echo_service import echo, never


async def test_a_stream_arrives_and_ends(backends: Backends) -> None:
    await backends.start(echo)
    assert await backends.stub.count(3) == ["0", "1", "2"]
    assert await backends.stub.count(0) == []


async def test_a_stream_fails_when_there_is_no_instance(backends: Backends) -> None:
    backends.announce()
    assert (await error_of(backends.stub.count(3))).code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_fails_raises_after_the_messages_it_received(backends: Backends) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise unavailable("DATABASE_UNAVAILABLE", "later", 1.0)

    await backends.start(fail)
    stream = backends.stub.Count(StringValue(value="2"))
    assert [(await anext(stream)).value for _ in range(2)] == ["0", "1"]
    with pytest.raises(RpcError, match="later"):
        await anext(stream)


async def test_a_stream_that_is_closed_early_is_not_counted_as_load(backends: Backends) -> None:
    await backends.start(never)
    stream = backends.stub.Count(StringValue(value="2"))
    assert (await anext(stream)).value == "0"
    await stream.aclose()
    assert [instance.outstanding for instance in backends.target.balancer._instances.values()] == [0]


async def test_streams_without_a_first_message_in_time_fail_and_open_the_breaker(backends: Backends) -> None:
    backends.change(deadline_seconds=0.05, reset_seconds=60.0)
    await backends.start(never)
    for _ in range(BREAKER_RULES.minimum_calls):
        assert (await error_of(backends.stub.count(0))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert backends.state() == "open"


async def test_an_instance_that_sends_no_first_message_is_ejected(backends: Backends) -> None:
    """The control is the other instance, which sends one and then nothing more."""
    backends.change(deadline_seconds=0.1, failure_ratio=1.0, ejection_seconds=60.0)
    silent, good = await backends.start(never, never)
    good.first_messages = 1
    ended, streams = 0, []
    while not silent.seen:
        stream = backends.stub.Count(StringValue(value="0"))
        try:
            await anext(stream)
            streams.append(stream)
        except RpcError as error:
            assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            ended += 1
    assert (ended, backends.target.balancer.ejected) == (1, [silent.address])
    for stream in streams:
        await stream.aclose()


async def test_a_stream_that_lasts_until_its_timeout_is_no_fault_of_its_instance(backends: Backends) -> None:
    await backends.start(never, never)
    for _ in range(6):
        error = await error_of(backends.stub.count(1, timeout=0.1))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert backends.target.balancer.ejected == []


async def test_a_stream_that_has_begun_may_pause_for_longer_than_the_deadline_of_a_call(backends: Backends) -> None:
    async def later(_text: str, _context: Any) -> str:
        await asyncio.sleep(SETTINGS.deadline_seconds + 0.5)
        return ""

    await backends.start(later)
    assert await backends.stub.count(1) == ["0"]
