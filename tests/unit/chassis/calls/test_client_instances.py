"""Balancing, retries at another instance and recovery, against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
from support.waiting import until

from chassis.errors import RpcError

from ..backends import Backends, error_of
from ..echo_service import Echo, echo, never


async def test_calls_spread_over_all_instances(backends: Backends) -> None:
    servers = await backends.start(echo, echo, echo)
    await asyncio.gather(*(backends.stub.say("x") for _ in range(150)))
    assert min(len(server.seen) for server in servers) > 25


async def test_a_busy_instance_gets_fewer_calls(backends: Backends) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    busy, free = await backends.start(slow, echo)
    calls = [asyncio.create_task(backends.stub.say("x")) for _ in range(20)]
    await until("every call has arrived", lambda: len(busy.seen) + len(free.seen) == 20)
    # A response that has not arrived yet still counts as a call under way.
    await until("the free instance has answered", lambda: sum(call.done() for call in calls) == len(free.seen))
    before = len(busy.seen)
    for _ in range(30):
        await backends.stub.say("x")
    assert len(busy.seen) == before
    gate.set()
    await asyncio.gather(*calls)


async def test_an_instance_that_joined_gets_calls_and_one_that_left_gets_none(backends: Backends) -> None:
    (first,) = await backends.start(echo)
    await backends.stub.say("a")
    (second,) = await backends.start(echo)
    for _ in range(5):
        await backends.stub.say("b")
    assert (Counter(first.seen), Counter(second.seen)) == (Counter(a=1), Counter(b=5))


async def test_an_instance_that_left_finishes_the_call_it_has(backends: Backends) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    (old,) = await backends.start(slow)
    call = asyncio.create_task(backends.stub.say("kept"))
    await until("the call has arrived", lambda: old.seen == ["kept"])
    await backends.start(echo)
    assert await backends.stub.say("new") == "new"
    gate.set()
    assert await call == "kept"


async def test_no_call_fails_when_one_of_two_instances_has_died(backends: Backends) -> None:
    dead, alive = await backends.start(echo, echo)
    await dead.stop()
    for number in range(50):
        assert await backends.stub.say(str(number)) == str(number)
    assert alive.seen == [str(number) for number in range(50)]
    assert backends.state() == "closed"


async def test_an_instance_that_hangs_is_ejected(backends: Backends) -> None:
    hung, good = await backends.start(never, echo)
    while not hung.seen:
        try:
            await backends.stub.say("x", timeout=0.1)
        except RpcError:
            break
    before = len(hung.seen)
    for _ in range(20):
        await backends.stub.say("y", timeout=0.5)
    assert len(hung.seen) == before
    assert good.seen.count("y") == 20


async def test_a_call_that_may_have_had_an_effect_is_not_retried(backends: Backends) -> None:
    servers = await backends.start(_cut, _cut)
    error = await error_of(backends.stub.say("once"))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert sum(server.seen.count("once") for server in servers) == 1


async def test_an_idempotent_call_is_retried_at_another_instance(backends: Backends) -> None:
    servers = await backends.start(_cut, echo)
    for number in range(10):
        assert await backends.stub.read(str(number)) == str(number)
    assert servers[1].seen.count("0") == 1


async def test_a_call_that_an_overloaded_instance_rejects_is_retried_at_another_instance(backends: Backends) -> None:
    """Even a call that is not idempotent, because the handler has not begun to work on it."""

    async def reject(_text: str, _context: Any) -> str:
        raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "queue is full")

    (full,) = await backends.start(reject)
    error = await error_of(backends.stub.say("rejected"))
    assert (error.code, error.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.3)
    free = await Echo(echo).start()
    backends.servers.append(free)
    backends.announce(full, free)
    for number in range(20):
        assert await backends.stub.say(str(number)) == str(number)
    assert backends.state() == "closed"


async def test_a_call_that_was_cut_off_while_it_ran_is_not_retried(backends: Backends) -> None:
    cut, other = await backends.start(never, never)
    call = asyncio.create_task(backends.stub.say("once"))
    await until("the call has arrived", lambda: len(cut.seen) + len(other.seen) == 1)
    await (cut if cut.seen else other).stop(0.05)
    assert (await error_of(call)).code is grpc.StatusCode.UNAVAILABLE
    assert len(cut.seen) + len(other.seen) == 1


async def test_no_call_fails_while_the_instances_are_replaced_one_by_one(backends: Backends) -> None:
    """As in a deploy: each instance leaves the list only after it has begun to reject calls."""
    servers = await backends.start(echo, echo)
    done, stop = 0, asyncio.Event()

    async def caller() -> None:
        nonlocal done
        while not stop.is_set():
            await backends.stub.say("x")
            done += 1

    callers = [asyncio.create_task(caller()) for _ in range(10)]
    for index in (0, 1):
        await until("200 more calls", lambda want=done + 200: done >= want)  # type: ignore[misc]
        replacement = await Echo(echo).start()
        backends.servers.append(replacement)
        old, servers[index] = servers[index], replacement
        stopping = asyncio.create_task(old.stop(2.0))
        await until("50 more calls", lambda want=done + 50: done >= want)  # type: ignore[misc]
        backends.announce(*servers)
        await stopping
    stop.set()
    await asyncio.gather(*callers)


async def test_calls_succeed_again_after_the_service_came_back(backends: Backends) -> None:
    (server,) = await backends.start(echo)
    await server.stop()
    for _ in range(4):
        await error_of(backends.stub.say("down"))
    assert backends.state() == "open"
    back = await Echo(echo).start(server.address)
    backends.servers.append(back)

    async def answered() -> bool:
        try:
            return await backends.stub.say("up") == "up"
        except RpcError:
            return False

    ends_at = time.monotonic() + 5
    while not await answered():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.05)
    assert backends.state() == "closed"


async def test_an_open_breaker_probes_an_instance_that_joins_at_once(backends: Backends) -> None:
    backends.change(reset_seconds=60.0)
    backends.announce()
    for _ in range(3):
        await error_of(backends.stub.say("down"))
    assert backends.state() == "open"
    await backends.start(echo)
    assert await backends.stub.say("up") == "up"
    assert backends.state() == "closed"


async def test_cancelled_calls_do_not_open_the_breaker(backends: Backends) -> None:
    (server,) = await backends.start(never)
    calls = [asyncio.create_task(backends.stub.say("x")) for _ in range(20)]
    await until("every call has arrived", lambda: len(server.seen) == 20)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert backends.state() == "closed"


async def _cut(_text: str, context: Any) -> str:
    """Answers like a server whose connection broke during the call."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    return ""
