"""Hypothesis: one worker is active, and when it is killed or stopped another one takes over within seconds."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from support.database_access import execute, query_value
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser
from support.traffic.concurrent_users import PENNY, RETRYABLE, retry_until_answered, wait_all_settled
from support.traffic.load import Load, Request
from support.traffic.performance_targets import Effort, efforts

from stack.machine import processes

LEADER = "SELECT leader FROM leader_terms WHERE name = 'worker' AND ends_at > clock_timestamp()"
TARGET_SECONDS, BOUND_SECONDS = 5.0, 15.0
RATE = 8

pytestmark = pytest.mark.usefixtures("healthy")


def active(running: RunningStack) -> tuple[str, int]:
    """The allocation id and the process id of the active worker."""
    found: tuple[str, int] = eventually("a worker is active", lambda: _active(running), 20)
    return found


def _active(running: RunningStack) -> tuple[str, int] | None:
    """None while no worker is active, or the active one has just ended."""
    holder = query_value(running, "order_service", LEADER)
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
def test_orders_are_settled_after_the_active_worker_is_gone(
    running: RunningStack, user: ApiUser, fault: signal.Signals, effort: Effort
) -> None:
    with Load(running.url("gateway"), RATE, placing(user)) as load:
        eventually("orders flow", lambda: len(load.answers) > 2 * RATE, 30)
        holder, pid = active(running)
        with gone(pid, fault):
            waits = [settling(user) for _ in range(effort.times)]
            successor, _ = active(running)
    assert {answer.status for answer in load.failures} <= RETRYABLE, load.report()
    acknowledged = [answer.headers["location"].rpartition("/")[2] for answer in load.answers if not answer.failed]
    assert {wait_all_settled(user, acknowledged, 60)[order_id] for order_id in acknowledged} == {"confirmed"}
    print(f"{fault.name}: settled again {max(waits):.1f} s after, among {len(acknowledged)} orders; {load.report()}")
    assert max(waits) <= effort.bound(TARGET_SECONDS, BOUND_SECONDS)
    assert fault is signal.SIGKILL or successor != holder


@contextmanager
def gone(pid: int, fault: signal.Signals) -> Iterator[None]:
    """The process is killed, or stopped until the block ends."""
    if fault is signal.SIGSTOP:
        processes.pause(pid)
    else:
        os.kill(pid, fault)
    try:
        yield
    finally:
        if fault is signal.SIGSTOP:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def placing(user: ApiUser) -> Callable[[int], Request]:
    """Orders, each with a key of its own."""

    def arrival(_: int) -> Request:
        headers = user.headers | {"Idempotency-Key": secrets.token_hex(16)}
        return Request("POST", "/v1/orders", httpx.codes.CREATED, headers, {"currency": "EUR", "lines": PENNY})

    return arrival


def settling(user: ApiUser) -> float:
    """Places an order; returns the seconds until it is settled."""
    began, key = time.monotonic(), secrets.token_hex(16)
    reply = retry_until_answered(lambda: user.place(PENNY, key=key))
    assert reply.status_code == httpx.codes.CREATED
    user.settled(reply.json()["id"], 2 * BOUND_SECONDS)
    return time.monotonic() - began


def test_a_claimed_outbox_entry_of_a_killed_worker_is_completed_by_its_successor(
    running: RunningStack, user: ApiUser
) -> None:
    """An entry that the previous worker had claimed is due at once, not when the claim ends."""
    order_id = user.settled(user.place().json()["id"])["id"]
    add = """INSERT INTO outbox (position, order_id, kind, traceparent, claimed, due_at)
             VALUES (-1, %s, 'reserve', '', true, now() + interval '1 hour')"""
    assert execute(running, "order_service", add, order_id) == 1
    try:
        _, pid = active(running)
        os.kill(pid, signal.SIGKILL)
        left = "SELECT count(*) FROM outbox WHERE position = -1"
        eventually("it is done", lambda: query_value(running, "order_service", left) == 0, BOUND_SECONDS)
    finally:
        execute(running, "order_service", "DELETE FROM outbox WHERE position = -1")
