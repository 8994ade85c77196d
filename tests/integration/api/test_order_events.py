"""Watches of orders on a running stack: each event arrives once and in order, also when an instance ends."""

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
from support.mesh.channels import mesh_channel
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from shop.order.v1.order_pb2 import WatchOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from stack.machine import processes
from stack.mesh import gateway_instance, operator_leaf
from stack.mesh.dial import is_on

Event = tuple[int, str]
PLACED, CONFIRMED, CANCELLED = (1, "OrderPlaced"), (2, "OrderConfirmed"), (3, "OrderCancelled")
_SOON = 5.0  # half of the grace period that a stream would otherwise get


@contextmanager
def watching(user: ApiUser, order_id: str, last: int | None = None) -> Iterator[Iterator[Event]]:
    """The events of an order as they come, id and name."""
    headers = user.headers | ({} if last is None else {"Last-Event-ID": str(last)})
    with user.http.stream("GET", f"/v1/orders/{order_id}/watch", headers=headers) as answer:
        assert answer.status_code == httpx.codes.OK, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str], seconds: float = 60) -> Iterator[Event]:
    ends_at, number = time.monotonic() + seconds, 0
    for line in lines:
        assert time.monotonic() < ends_at, "the stream has heartbeats only"
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        if name == "event":
            yield number, value


def until_cancelled(user: ApiUser, order_id: str, events: Iterator[Event]) -> list[Event]:
    """The rest of the events; a stream that ended early is resumed, as a browser does."""
    received = list(events)
    if CANCELLED not in received:
        with watching(user, order_id, last=2) as rest:
            received += rest
    return received


def _cancelled(user: ApiUser, order_id: str) -> bool:
    """Tries to cancel; True once the order is cancelled. During recovery a failed attempt may have cancelled it."""
    return user.cancel(order_id).status_code in {httpx.codes.OK, httpx.codes.CONFLICT}


def test_a_watch_ends_with_the_final_event_and_a_later_one_gets_no_content(user: ApiUser) -> None:
    order_id = user.place().json()["id"]
    with watching(user, order_id) as events:
        assert [next(events), next(events)] == [PLACED, CONFIRMED]
        assert user.cancel(order_id).status_code == httpx.codes.OK
        assert list(events) == [CANCELLED]
    again = user.get(f"/v1/orders/{order_id}/watch", headers={"Last-Event-ID": "3"})
    assert again.status_code == httpx.codes.NO_CONTENT


def test_a_watch_resumes_after_the_last_event_id(user: ApiUser) -> None:
    order_id = user.settled(user.place().json()["id"])["id"]
    with watching(user, order_id, last=1) as events:
        assert next(events) == CONFIRMED


def test_a_killed_instance_costs_its_watchers_no_event(running: RunningStack, user: ApiUser) -> None:
    running.wait_until_healthy()
    order_id = user.settled(user.place().json()["id"])["id"]
    with ExitStack() as streams:
        # Each call goes to the less busy instance, so both have some of these.
        watches = [streams.enter_context(watching(user, order_id)) for _ in range(4)]
        assert [[next(events), next(events)] for events in watches] == [[PLACED, CONFIRMED]] * 4
        os.kill(running.pids("order-service", "api")[0], signal.SIGKILL)
        eventually("the order is cancelled", lambda: _cancelled(user, order_id), 20)
        assert [until_cancelled(user, order_id, events) for events in watches] == [[CANCELLED]] * 4


def one_of(running: RunningStack, job: str) -> tuple[str, int]:
    """Address and process id of an instance of a service."""
    alloc = running.allocations(job, "api")[0]
    folder = running.folder(alloc, job)
    (found,) = [each["Service"] for each in running.instances(job) if alloc["ID"] in each["Service"]["ID"]]
    (pid,) = [pid for pid in running.pids(job, "api") if pid in processes.below(folder)]
    return f"{found['Address']}:{found['Port']}", pid


def test_an_instance_that_ends_closes_its_watches_as_unavailable(running: RunningStack, user: ApiUser) -> None:
    running.wait_until_healthy()
    address, pid = one_of(running, "order-service")
    order_id = user.settled(user.place().json()["id"])["id"]
    asked = WatchOrderRequest(user_id=user.id, order_id=order_id, after_version=1)
    with mesh_channel(running.clients, "order-service", address=address) as channel:
        stream = OrderServiceStub(channel).WatchOrder(asked, timeout=60)
        assert next(stream).event.WhichOneof("event") == "confirmed"
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert time.monotonic() - began < _SOON
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "another one goes on" in caught.value.details()


def test_a_gateway_that_ends_closes_its_streams_and_the_client_resumes_at_another(
    running: RunningStack, user: ApiUser
) -> None:
    running.wait_until_healthy()
    order_id = user.settled(user.place().json()["id"])["id"]
    address, pid = one_of(running, "gateway")
    host, _, port = address.rpartition(":")
    leaf = operator_leaf.issue(running.clients) if is_on(running.clients, "gateway") else None
    with (
        gateway_instance.client((host, int(port)), leaf) as there,
        watching(replace(user, http=there), order_id) as events,
    ):
        assert [next(events), next(events)] == [PLACED, CONFIRMED]
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        assert list(events) == []
        assert time.monotonic() - began < _SOON
    with watching(user, order_id, last=1) as events:
        assert next(events) == CONFIRMED
        assert user.cancel(order_id).status_code == httpx.codes.OK
        # Until Consul reports the end, the edge may choose the ending gateway, which sends what it has and closes.
        assert until_cancelled(user, order_id, events) == [CANCELLED]
    eventually("the gateway has ended", lambda: processes.start_time(pid) is None, 20)
    running.wait_until_healthy()
