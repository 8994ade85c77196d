"""Hypothesis: one worker is active, and when it is killed or stopped another one goes on within five seconds."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from support.database_access import change, value
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person
from support.traffic.concurrent_users import LATER, PENNY, all_settled, insist
from support.traffic.load import Load, Request
from support.traffic.targets import Effort, efforts

LEADER = "SELECT leader FROM leader_terms WHERE name = 'worker' AND ends_at > clock_timestamp()"
GOAL_SECONDS, BOUND_SECONDS = 5.0, 15.0
RATE = 8

pytestmark = pytest.mark.usefixtures("whole")


def active(running: RunningStack) -> tuple[str, int]:
    """The instance of the active worker, and its process."""
    found: tuple[str, int] = eventually("a worker is active", lambda: _active(running), 20)
    return found


def _active(running: RunningStack) -> tuple[str, int] | None:
    """None as long as nobody is, or one that has just ended."""
    holder = value(running, "order_service", LEADER)
    for alloc in running.allocations("order-service", "worker"):
        if alloc["ID"] == holder and (pids := running.working_in(running.folder(alloc, "order-service"))):
            return holder, pids[0]
    return None


def test_two_workers_run_and_one_is_active(running: RunningStack) -> None:
    assert len(running.pids("order-service", "worker")) == 2
    holder, _ = active(running)
    assert holder in {alloc["ID"] for alloc in running.allocations("order-service", "worker")}


@efforts(5, 20)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_orders_are_settled_soon_after_the_active_worker_is_gone(
    running: RunningStack, person: Person, fault: signal.Signals, effort: Effort
) -> None:
    with Load(running.url("gateway"), RATE, placing(person)) as load:
        eventually("orders flow", lambda: len(load.answers) > 2 * RATE, 30)
        holder, pid = active(running)
        with gone(pid, fault):
            waits = [settling(person) for _ in range(effort.times)]
            successor, _ = active(running)
    assert {answer.status for answer in load.failures} <= LATER, load.report()
    acknowledged = [answer.headers["location"].rpartition("/")[2] for answer in load.answers if not answer.failed]
    assert {all_settled(person, acknowledged, 60)[order_id] for order_id in acknowledged} == {"confirmed"}
    print(f"{fault.name}: settled again {max(waits):.1f} s after, among {len(acknowledged)} orders; {load.report()}")
    assert max(waits) <= effort.bound(GOAL_SECONDS, BOUND_SECONDS)
    assert fault is signal.SIGKILL or successor != holder


@contextmanager
def gone(pid: int, fault: signal.Signals) -> Iterator[None]:
    """The process is killed, or stopped until the block ends."""
    os.kill(pid, fault)
    try:
        yield
    finally:
        if fault is signal.SIGSTOP:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def placing(person: Person) -> Callable[[int], Request]:
    """Orders, each with a key of its own."""

    def arrival(_: int) -> Request:
        headers = person.headers | {"Idempotency-Key": secrets.token_hex(16)}
        return Request("POST", "/v1/orders", httpx.codes.CREATED, headers, {"currency": "EUR", "lines": PENNY})

    return arrival


def settling(person: Person) -> float:
    """Seconds from asking for an order until it is settled."""
    began, key = time.monotonic(), secrets.token_hex(16)
    reply = insist(lambda: person.place(PENNY, key=key))
    assert reply.status_code == httpx.codes.CREATED
    person.settled(reply.json()["id"], 2 * BOUND_SECONDS)
    return time.monotonic() - began


def test_an_outbox_entry_of_a_worker_that_is_gone_is_taken_over_at_once(running: RunningStack, person: Person) -> None:
    """What the one before had claimed is due for its successor, not when the claim ends."""
    order_id = person.settled(person.place().json()["id"])["id"]
    add = """INSERT INTO outbox (position, order_id, kind, traceparent, claimed, due_at)
             VALUES (-1, %s, 'reserve', '', true, now() + interval '1 hour')"""
    assert change(running, "order_service", add, order_id) == 1
    try:
        _, pid = active(running)
        os.kill(pid, signal.SIGKILL)
        left = "SELECT count(*) FROM outbox WHERE position = -1"
        eventually("it is done", lambda: value(running, "order_service", left) == 0, BOUND_SECONDS)
    finally:
        change(running, "order_service", "DELETE FROM outbox WHERE position = -1")
