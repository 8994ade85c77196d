"""A cancellation makes room, so it may use a reserve of permits; the reserve has an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support.waiting import until

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
