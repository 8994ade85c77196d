"""The bulkhead: refusals first, then who gets a place that is given back."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from chassis.calls.bulkhead import Bulkhead, BulkheadSettings
from chassis.errors import RpcError


def a_bulkhead(places: int, wait: float = 0.05) -> tuple[Bulkhead, list[BulkheadSettings]]:
    live = [BulkheadSettings(calls_at_once=places, wait_seconds=wait)]
    return Bulkhead("user-service", lambda: live[-1]), live


async def test_a_full_one_refuses_after_a_short_wait() -> None:
    bulkhead, _ = a_bulkhead(1)
    await bulkhead.enter(3.0)
    began = time.monotonic()
    with pytest.raises(RpcError) as refusal:
        await bulkhead.enter(3.0)
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BULKHEAD_FULL")
    assert (refusal.value.retry_after, bulkhead.taken, bulkhead.refused) == (1.0, 1, 1)
    assert time.monotonic() - began < 2.0


async def test_a_place_given_back_goes_to_who_waits_longest() -> None:
    bulkhead, _ = a_bulkhead(1, wait=5.0)
    await bulkhead.enter(3.0)
    served: list[int] = []

    async def wait(number: int) -> None:
        await bulkhead.enter(3.0)
        served.append(number)
        bulkhead.leave()

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    bulkhead.leave()
    await asyncio.gather(*waiting)
    assert (served, bulkhead.taken) == ([0, 1, 2], 0)


async def test_who_stops_waiting_takes_no_place_along() -> None:
    bulkhead, _ = a_bulkhead(1, wait=5.0)
    await bulkhead.enter(3.0)
    quitter = asyncio.create_task(bulkhead.enter(3.0))
    await asyncio.sleep(0)
    bulkhead.leave()
    quitter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await quitter
    assert bulkhead.taken == 0
    await asyncio.wait_for(bulkhead.enter(3.0), 1.0)


@pytest.mark.parametrize(("places", "most"), [(10, 10), (1000, 500)])
async def test_calls_at_once_never_exceed_the_places(places: int, most: int) -> None:
    """The second case is the control: with room for all, all run at once."""
    bulkhead, _ = a_bulkhead(places, wait=5.0)
    running = highest = 0

    async def call() -> None:
        nonlocal running, highest
        await bulkhead.enter(3.0)
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1
        bulkhead.leave()

    await asyncio.gather(*(call() for _ in range(500)))
    assert (highest, bulkhead.taken) == (most, 0)


async def test_a_changed_setting_counts_for_the_next_call() -> None:
    bulkhead, live = a_bulkhead(1, wait=0.0)
    await bulkhead.enter(3.0)
    live.append(BulkheadSettings(calls_at_once=2, wait_seconds=0.0))
    await bulkhead.enter(3.0)
    with pytest.raises(RpcError):
        await bulkhead.enter(3.0)
