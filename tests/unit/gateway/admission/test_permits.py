"""A cancellation makes room, so it may use a reserve of permits; the reserve has an end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from support.waiting import until

from gateway.admission.loop_delay import LoopDelay

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway


async def test_cancellations_use_a_reserve_and_are_rejected_beyond_it(gateway: RunningGateway) -> None:
    token = await gateway.token()
    path = f"/v1/orders/{(await gateway.place(token)).json()['id']}/cancel"
    tight = gateway.process.settings.value.limiter.model_copy(update={"calls_at_least": 4, "calls_at_most": 4})
    gateway.change(limiter=tight)
    gateway.servers.hanging.add("order-service")
    held = [asyncio.create_task(gateway.http.get("/v1/orders", headers=token)) for _ in range(4)]
    await until("the requests are in progress", lambda: gateway.requests_in_progress() == 4)
    cancelling = asyncio.create_task(gateway.http.post(path, headers=token))
    await until("the cancellation is in progress", lambda: gateway.requests_in_progress() == 5)
    rejected = await gateway.http.post(path, headers=token)
    assert (rejected.status_code, rejected.json()["type"]) == (503, "/problems/overloaded")
    assert (await gateway.http.post(path)).status_code == 401
    gateway.servers.hanging.clear()
    assert (await cancelling).status_code == 200
    assert {(await request).status_code for request in held} == {200}


@pytest.mark.parametrize(("delay", "status"), [(1.5, 503), (0.0, 200)], ids=["late", "control: in time"])
async def test_a_late_event_loop_admits_only_a_few(gateway: RunningGateway, delay: float, status: int) -> None:
    token = await gateway.token()
    gateway.app.ctx.loop_delay.seconds = delay
    gateway.servers.hanging.add("order-service")
    held = []
    for _ in range(3):
        held.append(asyncio.create_task(gateway.http.get("/v1/orders", headers=token)))
        await until("it is in progress", lambda: gateway.requests_in_progress() == len(held))
    response = await gateway.http.get("/v1/users/me", headers=token)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status == 503)
    assert (await gateway.http.get("/readyz")).status_code == 200
    gateway.servers.hanging.clear()
    assert {(await request).status_code for request in held} == {200}


async def test_the_delay_of_the_event_loop_is_measured() -> None:
    delay = LoopDelay()
    measuring = asyncio.create_task(delay.measure())
    await asyncio.sleep(0)
    time.sleep(0.6)
    await asyncio.sleep(0)
    await until("the delay is noticed", lambda: delay.seconds > 0.2, seconds=1)
    await until("the delay is over", lambda: delay.seconds < 0.2)
    measuring.cancel()


async def test_whatever_ends_a_request_releases_its_permit(gateway: RunningGateway) -> None:
    token = await gateway.token()
    for path in (
        "/v1/orders",
        "/v1/orders?limit=0",
        "/v1/orders/nonsense",
        "/v1/orders/nonsense/watch",
        "/v1/users/me",
    ):
        await gateway.http.get(path, headers=token)
    await gateway.http.post("/v1/orders", headers=token, content=b"{")
    await until("no request is in progress", lambda: gateway.requests_in_progress() == 0)
