"""Orders watched on a running stack: told in order and once, whatever ends under the watcher."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import grpc
import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person

from shop.order.v1.order_pb2 import WatchOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from stack.machine import processes

Event = tuple[int, str]
PLACED, CONFIRMED, CANCELLED = (1, "OrderPlaced"), (2, "OrderConfirmed"), (3, "OrderCancelled")
_SOON = 5.0  # half of the grace time that a stream would otherwise be given


@contextmanager
def watching(person: Person, order_id: str, last: int | None = None) -> Iterator[Iterator[Event]]:
    """The events of an order as they come, id and name."""
    headers = person.headers | ({} if last is None else {"Last-Event-ID": str(last)})
    with person.http.stream("GET", f"/v1/orders/{order_id}/watch", headers=headers) as answer:
        assert answer.status_code == httpx.codes.OK, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str], seconds: float = 60) -> Iterator[Event]:
    ends_at, number = time.monotonic() + seconds, 0
    for line in lines:
        assert time.monotonic() < ends_at, "a stream that only beats"
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        if name == "event":
            yield number, value


def to_the_end(person: Person, order_id: str, events: Iterator[Event]) -> list[Event]:
    """What a stream still tells; one that was given up on a busy machine is taken up again, as a browser does."""
    told = list(events)
    if CANCELLED not in told:
        with watching(person, order_id, last=2) as rest:
            told += rest
    return told


def _cancelled(person: Person, order_id: str) -> bool:
    """Whether it is; while the system mends, the answer may be 503, and the cancellation may have been done."""
    return person.cancel(order_id).status_code in {httpx.codes.OK, httpx.codes.CONFLICT}


def test_a_placed_order_is_watched_until_it_is_final_and_then_nobody_has_to_come_back(person: Person) -> None:
    order_id = person.place().json()["id"]
    with watching(person, order_id) as events:
        assert [next(events), next(events)] == [PLACED, CONFIRMED]
        assert person.cancel(order_id).status_code == httpx.codes.OK
        assert list(events) == [CANCELLED]
    again = person.get(f"/v1/orders/{order_id}/watch", headers={"Last-Event-ID": "3"})
    assert again.status_code == httpx.codes.NO_CONTENT


def test_a_watch_goes_on_after_the_last_event_one_has(person: Person) -> None:
    order_id = person.settled(person.place().json()["id"])["id"]
    with watching(person, order_id, last=1) as events:
        assert next(events) == CONFIRMED


def test_a_killed_instance_costs_its_watchers_nothing(running: RunningStack, person: Person) -> None:
    running.steady()
    order_id = person.settled(person.place().json()["id"])["id"]
    with ExitStack() as streams:
        # The less busy instance is taken each time, so both have some of these.
        watches = [streams.enter_context(watching(person, order_id)) for _ in range(4)]
        assert [[next(events), next(events)] for events in watches] == [[PLACED, CONFIRMED]] * 4
        os.kill(running.pids("order-service", "api")[0], signal.SIGKILL)
        eventually("the order is cancelled", lambda: _cancelled(person, order_id), 20)
        assert [to_the_end(person, order_id, events) for events in watches] == [[CANCELLED]] * 4


def one_of(running: RunningStack, job: str) -> tuple[str, int]:
    """Address and process of an instance of a service."""
    alloc = running.allocations(job, "api")[0]
    folder = running.folder(alloc, job)
    (found,) = [each["Service"] for each in running.instances(job) if alloc["ID"] in each["Service"]["ID"]]
    (pid,) = [pid for pid in running.pids(job, "api") if pid in processes.below(folder)]
    return f"{found['Address']}:{found['Port']}", pid


def test_an_instance_that_ends_says_so_to_its_watchers_at_once(running: RunningStack, person: Person) -> None:
    running.steady()
    address, pid = one_of(running, "order-service")
    order_id = person.settled(person.place().json()["id"])["id"]
    asked = WatchOrderRequest(user_id=person.id, order_id=order_id, after_version=1)
    with grpc.insecure_channel(address) as channel:
        stream = OrderServiceStub(channel).WatchOrder(asked, timeout=60)
        assert next(stream).event.WhichOneof("event") == "confirmed"
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert time.monotonic() - began < _SOON
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "another one goes on" in caught.value.details()


def test_a_gateway_that_ends_closes_its_streams_and_the_client_goes_on_at_the_next(
    running: RunningStack, person: Person
) -> None:
    running.steady()
    order_id = person.settled(person.place().json()["id"])["id"]
    address, pid = one_of(running, "gateway")
    with (
        httpx.Client(base_url=f"http://{address}", timeout=15) as there,
        watching(replace(person, http=there), order_id) as events,
    ):
        assert [next(events), next(events)] == [PLACED, CONFIRMED]
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        assert list(events) == []
        assert time.monotonic() - began < _SOON
    with watching(person, order_id, last=1) as events:
        assert next(events) == CONFIRMED
        assert person.cancel(order_id).status_code == httpx.codes.OK
        # The edge may have asked the one that ends before Consul told it so: that one tells what it knows, and closes.
        assert to_the_end(person, order_id, events) == [CANCELLED]
    eventually("the gateway has ended", lambda: processes.start_time(pid) is None, 20)
    running.steady()
