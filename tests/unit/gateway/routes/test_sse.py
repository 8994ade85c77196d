"""An order watched from outside: the form of the stream, where it goes on, and every way in which it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from gateway.http import http_server

from ..backend_services import until

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..system import System

Event = dict[str, Any]


class Watch:
    """A stream as a client reads it."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def block(self) -> list[str]:
        """The lines up to the next empty one; none at the end of the stream."""
        found = []
        async for line in self._lines:
            if not line:
                break
            found.append(line)
        return found

    async def event(self) -> Event | None:
        """The next event, whatever comes between; None at the end of the stream."""
        while block := await asyncio.wait_for(self.block(), 5):
            if any(line.startswith("data:") for line in block):
                return dict(line.split(": ", 1) for line in block)
        return None

    async def names(self) -> list[str]:
        """The names of all events to the end."""
        found = []
        while event := await self.event():
            found.append(event["event"])
        return found


async def placed(system: System) -> tuple[str, dict[str, str]]:
    token = await system.token()
    return (await system.place(token)).json()["id"], token


@asynccontextmanager
async def watching(system: System, order: str, headers: dict[str, str]) -> AsyncIterator[Watch]:
    async with system.http.stream("GET", f"/v1/orders/{order}/watch", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Watch(answer)


async def test_without_a_token_nothing_is_told(system: System) -> None:
    answer = await system.http.get(f"/v1/orders/{uuid4()}/watch")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")


@pytest.mark.parametrize("order", ["01a20ad9-ad31-72d5-8db0-0f031df77a40", "nonsense"])
async def test_an_order_that_is_not_there_is_a_problem_and_no_stream(system: System, order: str) -> None:
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=await system.token())
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/order-unknown")


async def test_the_order_of_somebody_else_is_not_there(system: System) -> None:
    order, _ = await placed(system)
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=await system.token("eve@example.com"))
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/order-unknown")


@pytest.mark.parametrize("last", ["x", "-1", "1.0", "2", "1_0", "9" * 18, "9" * 50])
async def test_a_last_event_id_that_was_never_told_is_422_and_named(system: System, last: str) -> None:
    order, token = await placed(system)
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=token | {"last-event-id": last})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid")
    assert [error["field"] for error in answer.json()["errors"]] == ["Last-Event-ID"]


async def test_without_the_order_service_it_is_503_with_a_time_to_come_back(system: System) -> None:
    order, token = await placed(system)
    await system.servers.stop("order-service")
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_order_service_that_hangs_is_504(system: System) -> None:
    order, token = await placed(system)
    system.servers.hanging.add("order-service")
    settings = system.process.settings.value
    system.change(orders=settings.orders.model_copy(update={"deadline_seconds": 0.2}))
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")


async def test_more_watchers_than_are_taken_is_503(system: System) -> None:
    order, token = await placed(system)
    settings = system.orders.instances[0].process.settings
    settings.replace(settings.value.model_copy(update={"watchers_at_most": 0}))
    answer = await system.http.get(f"/v1/orders/{order}/watch", headers=token)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/overloaded")


async def test_events_come_as_they_happen_in_the_form_of_server_sent_events(system: System) -> None:
    order, token = await placed(system)
    history = f"/v1/orders/{order}/events"
    async with watching(system, order, token) as watch:
        assert watch.answer.headers["content-type"] == "text/event-stream"
        assert watch.answer.headers["transfer-encoding"] == "chunked"
        assert watch.answer.headers["cache-control"] == "no-store"
        assert await watch.block() == ["retry: 1000"]
        first = await watch.event()
        assert first is not None
        assert (first["id"], first["event"]) == ("1", "OrderPlaced")
        await system.worker.confirm(order)
        second = await watch.event()
        assert second is not None
        assert (second["id"], second["event"]) == ("2", "OrderConfirmed")
    items = (await system.http.get(history, headers=token)).json()["items"]
    states = [{"status": "pending"}, {"status": "confirmed"}]
    assert [json.loads(event["data"]) for event in (first, second)] == [
        item | state for item, state in zip(items, states, strict=True)
    ]


async def test_a_stream_ends_with_the_final_event_and_nobody_has_to_come_back(system: System) -> None:
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        await system.worker.reject(order)
        assert await watch.names() == ["OrderPlaced", "OrderRejected"]
    again = await system.http.get(f"/v1/orders/{order}/watch", headers=token | {"last-event-id": "2"})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_stream_goes_on_after_the_last_event_id(system: System) -> None:
    order, token = await placed(system)
    await system.worker.confirm(order)
    async with watching(system, order, token | {"last-event-id": "1"}) as watch:
        await system.http.post(f"/v1/orders/{order}/cancel", headers=token)
        assert await watch.names() == ["OrderConfirmed", "OrderCancelled"]


async def test_a_stream_with_nothing_to_tell_begins_at_once_and_beats(system: System) -> None:
    system.change(watch_heartbeat_seconds=0.05)
    order, token = await placed(system)
    async with watching(system, order, token | {"last-event-id": "1"}) as watch:
        assert await watch.block() == ["retry: 1000"]
        assert [await watch.block() for _ in range(3)] == [[":"]] * 3


async def test_a_stream_outlasts_the_time_for_an_answer(system: System) -> None:
    system.server.app.config.RESPONSE_TIMEOUT = 1.0
    order, token = await placed(system)
    system.change(deadline_seconds=1.0)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        await asyncio.sleep(2.5)  # more than twice as long as any other answer gets
        await system.worker.confirm(order)
        assert (await watch.event() or {})["event"] == "OrderConfirmed"


async def test_a_client_that_goes_away_ends_its_watch(system: System) -> None:
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        assert system.orders.watching() == 1
    await until(lambda: system.orders.watching() == 0)


async def test_where_an_instance_drains_another_goes_on_and_nothing_is_lost_or_doubled(system: System) -> None:
    await system.orders.start(system.servers)
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        first = system.orders.watched()
        first.process.stopping.set()
        await until(lambda: system.orders.watching() == 1 and not first.watchers.count)
        await system.worker.confirm(order)
        await system.http.post(f"/v1/orders/{order}/cancel", headers=token)
        assert await watch.names() == ["OrderConfirmed", "OrderCancelled"]


async def test_where_an_instance_dies_another_goes_on(system: System) -> None:
    await system.orders.start(system.servers)
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        first = system.orders.watched()
        await system.servers.kill("order-service", first.address)
        await until(lambda: any(each.watchers.count for each in system.orders.instances if each is not first))
        await system.worker.reject(order)
        assert await watch.names() == ["OrderRejected"]


async def test_where_no_instance_is_left_the_stream_ends_so_that_the_client_comes_back(system: System) -> None:
    system.change(deadline_seconds=0.3)
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        await system.servers.stop("order-service")
        assert await watch.names() == []


async def test_a_gateway_that_drains_ends_its_streams_at_once(system: System) -> None:
    order, token = await placed(system)
    async with watching(system, order, token) as watch:
        assert await watch.event()
        system.process.stopping.set()
        began = time.monotonic()
        await http_server.close(system.server, grace=30)
        assert time.monotonic() - began < 10
        assert await watch.names() == []
    await until(lambda: system.orders.watching() == 0)


async def test_head_tells_of_a_stream_without_opening_one(system: System) -> None:
    order, token = await placed(system)
    answer = await system.http.head(f"/v1/orders/{order}/watch", headers=token)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    await until(lambda: system.orders.watching() == 0)


async def test_a_watch_is_one_span_that_counts_its_events(system: System, spans: InMemorySpanExporter) -> None:
    order, token = await placed(system)
    spans.clear()
    async with watching(system, order, token) as watch:
        await system.worker.reject(order)
        await watch.names()
    name = "GET /v1/orders/{order_id}/watch"
    await until(lambda: name in {span.name for span in spans.get_finished_spans()})
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    assert found.attributes is not None
    assert (found.attributes["watch.events"], found.attributes["http.response.status_code"]) == (2, 200)
    assert not found.events
