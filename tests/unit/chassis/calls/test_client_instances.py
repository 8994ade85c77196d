"""Which instance a call goes to: balancing, trying elsewhere, healing; against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
from support.waiting import until

from chassis.errors import RpcError

from ..backends import World, refusal, settings
from ..echo_service import Echo, echo, never


async def test_calls_spread_over_all_instances(world: World) -> None:
    servers = await world.start(echo, echo, echo)
    await asyncio.gather(*(world.stub.say("x") for _ in range(300)))
    assert min(len(server.seen) for server in servers) > 50


async def test_a_busy_instance_gets_fewer_calls(world: World) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    busy, free = await world.start(slow, echo)
    calls = [asyncio.create_task(world.stub.say("x")) for _ in range(20)]
    await until("every call has arrived", lambda: len(busy.seen) + len(free.seen) == 20)
    # An answer that is on its way still counts as a call that the free one has.
    await until("the free one's are answered", lambda: sum(call.done() for call in calls) == len(free.seen))
    before = len(busy.seen)
    for _ in range(30):
        await world.stub.say("x")
    assert len(busy.seen) == before
    gate.set()
    await asyncio.gather(*calls)


async def test_a_new_instance_is_used_and_a_gone_one_is_not(world: World) -> None:
    (first,) = await world.start(echo)
    await world.stub.say("a")
    (second,) = await world.start(echo)
    for _ in range(5):
        await world.stub.say("b")
    assert (Counter(first.seen), Counter(second.seen)) == (Counter(a=1), Counter(b=5))


async def test_an_instance_that_left_finishes_the_call_it_has(world: World) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    (old,) = await world.start(slow)
    call = asyncio.create_task(world.stub.say("kept"))
    await until("the call has arrived", lambda: old.seen == ["kept"])
    await world.start(echo)
    assert await world.stub.say("new") == "new"
    gate.set()
    assert await call == "kept"


async def test_a_dead_instance_costs_no_call_while_another_lives(world: World) -> None:
    dead, alive = await world.start(echo, echo)
    await dead.stop()
    for number in range(50):
        assert await world.stub.say(str(number)) == str(number)
    assert alive.seen == [str(number) for number in range(50)]
    assert world.state() == "closed"


async def test_an_instance_that_does_not_answer_is_avoided_for_a_while(world: World) -> None:
    hung, good = await world.start(never, echo)
    while not hung.seen:
        try:
            await world.stub.say("x", timeout=0.1)
        except RpcError:
            break
    before = len(hung.seen)
    for _ in range(20):
        await world.stub.say("y", timeout=0.5)
    assert len(hung.seen) == before
    assert good.seen.count("y") == 20


async def test_a_call_that_may_have_happened_is_not_made_again(world: World) -> None:
    servers = await world.start(_cut, _cut)
    error = await refusal(world.stub.say("once"))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert sum(server.seen.count("once") for server in servers) == 1


async def test_a_call_the_contract_calls_repeatable_is_made_once_more_elsewhere(world: World) -> None:
    servers = await world.start(_cut, echo)
    for number in range(10):
        assert await world.stub.read(str(number)) == str(number)
    assert servers[1].seen.count("0") == 1


async def test_a_call_an_instance_has_no_room_for_is_made_elsewhere(world: World) -> None:
    gate = asyncio.Event()

    async def hold(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    full = await Echo(hold, limit=1).start()
    world.servers.append(full)
    world.announce(full)
    held = asyncio.create_task(world.stub.say("held"))
    await until("the call has arrived", lambda: full.seen == ["held"])
    error = await refusal(world.stub.say("shed"))
    assert (error.code, error.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.3)
    free = await Echo(echo).start()
    world.servers.append(free)
    world.announce(full, free)
    for number in range(20):
        assert await world.stub.say(str(number)) == str(number)
    assert world.state() == "closed"
    gate.set()
    await held


async def test_a_call_that_was_cut_off_while_it_ran_is_not_made_again(world: World) -> None:
    cut, other = await world.start(never, never)
    call = asyncio.create_task(world.stub.say("once"))
    await until("the call has arrived", lambda: len(cut.seen) + len(other.seen) == 1)
    await (cut if cut.seen else other).stop(0.05)
    assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
    assert len(cut.seen) + len(other.seen) == 1


async def test_calls_survive_instances_that_stop_one_after_the_other(world: World) -> None:
    """A deploy: each instance leaves the set late, after it began to refuse; no call is lost."""
    servers = await world.start(echo, echo)
    done, stop = 0, asyncio.Event()

    async def caller() -> None:
        nonlocal done
        while not stop.is_set():
            await world.stub.say("x")
            done += 1

    callers = [asyncio.create_task(caller()) for _ in range(10)]
    for index in (0, 1):
        await until("200 more calls", lambda want=done + 200: done >= want)  # type: ignore[misc]
        replacement = await Echo(echo).start()
        world.servers.append(replacement)
        old, servers[index] = servers[index], replacement
        stopping = asyncio.create_task(old.stop(2.0))
        await until("50 more calls", lambda want=done + 50: done >= want)  # type: ignore[misc]
        world.announce(*servers)
        await stopping
    stop.set()
    await asyncio.gather(*callers)


async def test_it_heals_by_itself_after_the_service_came_back(world: World) -> None:
    (server,) = await world.start(echo)
    await server.stop()
    for _ in range(4):
        await refusal(world.stub.say("down"))
    assert world.state() == "open"
    back = await Echo(echo).start(server.address)
    world.servers.append(back)

    async def answered() -> bool:
        try:
            return await world.stub.say("up") == "up"
        except RpcError:
            return False

    ends_at = time.monotonic() + 5
    while not await answered():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.05)
    assert world.state() == "closed"


async def test_a_new_instance_is_probed_at_once_although_the_breaker_is_open(world: World) -> None:
    world.settings = settings(breaker__reset_seconds=60.0)
    world.announce()
    for _ in range(3):
        await refusal(world.stub.say("down"))
    assert world.state() == "open"
    await world.start(echo)
    assert await world.stub.say("up") == "up"
    assert world.state() == "closed"


async def test_callers_that_give_up_do_not_open_the_breaker(world: World) -> None:
    (server,) = await world.start(never)
    calls = [asyncio.create_task(world.stub.say("x")) for _ in range(20)]
    await until("every call has arrived", lambda: len(server.seen) == 20)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert world.state() == "closed"


async def _cut(_text: str, context: Any) -> str:
    """Answer as a server whose connection broke under the call."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    return ""
