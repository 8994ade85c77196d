"""Watching an order: the format of the stream, its continuation, and every way in which it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from support.waiting import until

from gateway.http import http_server

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..running_gateway import RunningGateway

Event = dict[str, Any]


class Watch:
    """Reads a stream as a client does."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def block(self) -> list[str]:
        """Returns the lines up to the next empty one; an empty list at the end of the stream."""
        found = []
        async for line in self._lines:
            if not line:
                break
            found.append(line)
        return found

    async def event(self) -> Event | None:
        """Returns the next event and skips all other blocks; None at the end of the stream."""
        while block := await asyncio.wait_for(self.block(), 5):
            if any(line.startswith("data:") for line in block):
                return dict(line.split(": ", 1) for line in block)
        return None

    async def names(self) -> list[str]:
        """Returns the names of all events up to the end."""
        found = []
        while event := await self.event():
            found.append(event["event"])
        return found


async def placed(gateway: RunningGateway) -> tuple[str, dict[str, str]]:
    token = await gateway.token()
    return (await gateway.place(token)).json()["id"], token


@asynccontextmanager
async def watching(gateway: RunningGateway, order: str, headers: dict[str, str]) -> AsyncIterator[Watch]:
    async with gateway.http.stream("GET", f"/v1/orders/{order}/watch", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Watch(response)


async def test_a_watch_without_a_token_is_401(gateway: RunningGateway) -> None:
    response = await gateway.http.get(f"/v1/orders/{uuid4()}/watch")
    assert (response.status_code, response.headers["content-type"]) == (401, "application/problem+json")


@pytest.mark.parametrize("order", ["01a20ad9-ad31-72d5-8db0-0f031df77a40", "nonsense"])
async def test_a_watch_of_an_unknown_order_is_404(gateway: RunningGateway, order: str) -> None:
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=await gateway.token())
    assert (response.status_code, response.json()["type"]) == (404, "/problems/order-unknown")


async def test_a_watch_of_another_users_order_is_404(gateway: RunningGateway) -> None:
    order, _ = await placed(gateway)
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=await gateway.token("eve@example.com"))
    assert (response.status_code, response.json()["type"]) == (404, "/problems/order-unknown")


@pytest.mark.parametrize("last", ["", "x", "-1", "1.0", "2", "1_0", "9" * 18, "9" * 50])
async def test_a_last_event_id_that_was_never_sent_is_422_and_named(gateway: RunningGateway, last: str) -> None:
    order, token = await placed(gateway)
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token | {"last-event-id": last})
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid")
    assert [error["field"] for error in response.json()["errors"]] == ["Last-Event-ID"]


async def test_a_watch_without_the_order_service_is_503_with_a_retry_time(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    await gateway.servers.stop("order-service")
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_watch_is_504_if_the_order_service_hangs(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    gateway.servers.hanging.add("order-service")
    settings = gateway.process.settings.value
    gateway.change(orders=settings.orders.model_copy(update={"deadline_seconds": 0.2}))
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (response.status_code, response.json()["type"]) == (504, "/problems/deadline-exceeded")


async def test_a_watch_beyond_the_maximum_is_503(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    settings = gateway.orders.instances[0].process.settings
    settings.replace(settings.value.model_copy(update={"max_watches": 0}))
    response = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (response.status_code, response.json()["type"]) == (503, "/problems/overloaded")


async def test_events_are_sent_when_they_happen_as_server_sent_events(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    history = f"/v1/orders/{order}/events"
    async with watching(gateway, order, token) as watch:
        assert watch.response.headers["content-type"] == "text/event-stream"
        assert watch.response.headers["transfer-encoding"] == "chunked"
        assert watch.response.headers["cache-control"] == "no-store"
        assert await watch.block() == ["retry: 1000"]
        first = await watch.event()
        assert first is not None
        assert (first["id"], first["event"]) == ("1", "OrderPlaced")
        await gateway.orders.confirm(order)
        second = await watch.event()
        assert second is not None
        assert (second["id"], second["event"]) == ("2", "OrderConfirmed")
    items = (await gateway.http.get(history, headers=token)).json()["items"]
    states = [{"status": "pending"}, {"status": "confirmed"}]
    assert [json.loads(event["data"]) for event in (first, second)] == [
        item | state for item, state in zip(items, states, strict=True)
    ]


async def test_a_stream_ends_with_the_final_event_and_a_reconnect_gets_204(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        await gateway.orders.reject(order)
        assert await watch.names() == ["OrderPlaced", "OrderRejected"]
    again = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token | {"last-event-id": "2"})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_stream_continues_after_the_last_event_id(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    await gateway.orders.confirm(order)
    async with watching(gateway, order, token | {"last-event-id": "1"}) as watch:
        await gateway.http.post(f"/v1/orders/{order}/cancel", headers=token)
        assert await watch.names() == ["OrderConfirmed", "OrderCancelled"]


async def test_a_stream_without_events_begins_immediately_and_sends_heartbeats(gateway: RunningGateway) -> None:
    gateway.change(watch_heartbeat_seconds=0.05)
    order, token = await placed(gateway)
    async with watching(gateway, order, token | {"last-event-id": "1"}) as watch:
        assert await watch.block() == ["retry: 1000"]
        assert [await watch.block() for _ in range(3)] == [[":"]] * 3


async def test_a_stream_ends_when_its_token_expires(gateway: RunningGateway, monkeypatch: Any) -> None:
    """The wall clock decides, because a machine that slept wakes up with expired tokens."""
    gateway.change(watch_heartbeat_seconds=0.05)
    order, token = await placed(gateway)
    expires_at = 3600 + time.time()
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        monkeypatch.setattr("gateway.routes.sse.time.time", lambda: expires_at - 5)
        assert [await watch.block() for _ in range(3)] == [[":"]] * 3
        monkeypatch.setattr("gateway.routes.sse.time.time", lambda: expires_at + 1)
        assert await watch.event() is None
    again = await gateway.http.get(f"/v1/orders/{order}/watch", headers=token | {"last-event-id": "1"})
    assert (again.status_code, again.json()["type"]) == (401, "/problems/unauthenticated")


async def test_a_silent_stream_ends_when_its_token_expires(gateway: RunningGateway) -> None:
    """Without waiting for the next heartbeat, which the setting delays to its longest."""
    gateway.change(watch_heartbeat_seconds=300.0)
    order, token = await placed(gateway)
    verifier = gateway.app.ctx.access_tokens
    principal = await verifier.verify(token["authorization"].removeprefix("Bearer "))
    verifier._verified = {key: replace(principal, expires_at=time.time() + 1.5) for key in verifier._verified}
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        assert await watch.event() is None
    assert time.time() < principal.expires_at


async def test_a_stream_is_not_limited_by_the_response_timeout(gateway: RunningGateway) -> None:
    gateway.server.app.config.RESPONSE_TIMEOUT = 1.0
    order, token = await placed(gateway)
    gateway.change(deadline_seconds=1.0)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        await asyncio.sleep(2.5)  # more than twice as long as any other response gets
        await gateway.orders.confirm(order)
        assert (await watch.event() or {})["event"] == "OrderConfirmed"


async def test_a_disconnected_client_ends_its_watch(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        assert gateway.orders.open_watches() == 1
    await until("no watch is open", lambda: gateway.orders.open_watches() == 0)


async def test_another_instance_continues_when_one_drains_and_no_event_is_lost_or_repeated(
    gateway: RunningGateway,
) -> None:
    await gateway.orders.start(gateway.servers)
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        first = gateway.orders.watched_instance()
        first.process.stopping.set()
        await until(
            "the other instance is watched", lambda: gateway.orders.open_watches() == 1 and not first.watches.count
        )
        await gateway.orders.confirm(order)
        await gateway.http.post(f"/v1/orders/{order}/cancel", headers=token)
        assert await watch.names() == ["OrderConfirmed", "OrderCancelled"]


async def test_another_instance_continues_when_one_is_killed(gateway: RunningGateway) -> None:
    await gateway.orders.start(gateway.servers)
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        first = gateway.orders.watched_instance()
        await gateway.servers.kill("order-service", first.address)
        await until(
            "another instance is watched",
            lambda: any(each.watches.count for each in gateway.orders.instances if each is not first),
        )
        await gateway.orders.reject(order)
        assert await watch.names() == ["OrderRejected"]


async def test_a_stream_ends_when_no_instance_is_left_so_that_the_client_reconnects(gateway: RunningGateway) -> None:
    gateway.change(deadline_seconds=0.3)
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        await gateway.servers.stop("order-service")
        assert await watch.names() == []


async def test_a_draining_gateway_ends_its_streams_immediately(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    async with watching(gateway, order, token) as watch:
        assert await watch.event()
        gateway.process.stopping.set()
        began = time.monotonic()
        await http_server.close(gateway.server, grace=30)
        assert time.monotonic() - began < 10
        assert await watch.names() == []
    await until("no watch is open", lambda: gateway.orders.open_watches() == 0)


async def test_head_of_a_watch_opens_no_stream(gateway: RunningGateway) -> None:
    order, token = await placed(gateway)
    response = await gateway.http.head(f"/v1/orders/{order}/watch", headers=token)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    await until("no watch is open", lambda: gateway.orders.open_watches() == 0)


async def test_a_watch_is_one_span_that_counts_its_events(gateway: RunningGateway, spans: InMemorySpanExporter) -> None:
    order, token = await placed(gateway)
    spans.clear()
    async with watching(gateway, order, token) as watch:
        await gateway.orders.reject(order)
        await watch.names()
    name = "GET /v1/orders/{order_id}/watch"
    await until("the span is finished", lambda: name in {span.name for span in spans.get_finished_spans()})
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    assert found.attributes is not None
    assert (found.attributes["watch.events"], found.attributes["http.response.status_code"]) == (2, 200)
    assert not found.events
