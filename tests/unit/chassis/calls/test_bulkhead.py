"""The bulkhead: when it rejects a call, and which waiting call gets a permit that is released."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from chassis.calls.bulkhead import Bulkhead
from chassis.calls.client_settings import ClientSettings
from chassis.errors import RpcError
from chassis.settings import Live

from ..backends import settings


def make_bulkhead(permits: int, wait_seconds: float = 0.05) -> tuple[Bulkhead, Live[ClientSettings]]:
    live = Live(settings(calls_at_once=permits))
    return Bulkhead("user-service", live, wait_seconds), live


async def test_a_full_bulkhead_rejects_a_call_after_a_short_wait() -> None:
    bulkhead, _ = make_bulkhead(1)
    await bulkhead.acquire(3.0)
    began = time.monotonic()
    with pytest.raises(RpcError) as rejection:
        await bulkhead.acquire(3.0)
    assert (rejection.value.code, rejection.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BULKHEAD_FULL")
    assert (rejection.value.retry_after, bulkhead.in_use, bulkhead.rejected) == (1.0, 1, 1)
    assert time.monotonic() - began < 2.0


async def test_a_released_permit_goes_to_the_call_that_has_waited_longest() -> None:
    bulkhead, _ = make_bulkhead(1, wait_seconds=5.0)
    await bulkhead.acquire(3.0)
    served: list[int] = []

    async def wait(number: int) -> None:
        await bulkhead.acquire(3.0)
        served.append(number)
        bulkhead.release()

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    bulkhead.release()
    await asyncio.gather(*waiting)
    assert (served, bulkhead.in_use) == ([0, 1, 2], 0)


async def test_a_call_cancelled_while_it_waits_keeps_no_permit() -> None:
    bulkhead, _ = make_bulkhead(1, wait_seconds=5.0)
    await bulkhead.acquire(3.0)
    cancelled = asyncio.create_task(bulkhead.acquire(3.0))
    await asyncio.sleep(0)
    bulkhead.release()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert bulkhead.in_use == 0
    await asyncio.wait_for(bulkhead.acquire(3.0), 1.0)


@pytest.mark.parametrize(("permits", "most"), [(10, 10), (1000, 500)])
async def test_concurrent_calls_never_exceed_the_permits(permits: int, most: int) -> None:
    """The second case is the control: with enough permits, all calls run at the same time."""
    bulkhead, _ = make_bulkhead(permits, wait_seconds=5.0)
    running = highest = 0

    async def call() -> None:
        nonlocal running, highest
        await bulkhead.acquire(3.0)
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1
        bulkhead.release()

    await asyncio.gather(*(call() for _ in range(500)))
    assert (highest, bulkhead.in_use) == (most, 0)


async def test_a_changed_limit_applies_to_the_next_call() -> None:
    bulkhead, live = make_bulkhead(1, wait_seconds=0.0)
    await bulkhead.acquire(3.0)
    live.replace(settings(calls_at_once=2))
    await bulkhead.acquire(3.0)
    with pytest.raises(RpcError):
        await bulkhead.acquire(3.0)
