"""Hypothesis: killing instances of the Order Service loses and doubles no acknowledged order, and leaks no credit."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from uuid import uuid4

import httpx
import pytest
from support.database_access import execute
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser, register
from support.traffic.concurrent_users import Customers, kill_one, wait_all_settled
from support.traffic.performance_targets import Effort, efforts

USERS, CUSTOMERS = 3, 2
CREDIT = 100_000

pytestmark = pytest.mark.usefixtures("healthy")


def kill(running: RunningStack, times: int) -> Counter[str]:
    """Kills instances at random moments, at most half of a group at once; returns how many of each group."""
    killed = Counter[str]()
    for _ in range(times):
        group = random.choice(["api", "worker"])
        eventually("both of the group run", lambda: len(running.pids("order-service", group)) == 2, 30)  # noqa: B023
        assert kill_one(running, "order-service", group)
        killed[group] += 1
        time.sleep(random.uniform(0.0, 1.5))
    return killed


@pytest.mark.timeout(3600)
@efforts(4, 200)
def test_kills_under_load_lose_and_double_no_order_and_leak_no_credit(
    running: RunningStack, http: httpx.Client, effort: Effort
) -> None:
    customers_of_users = [Customers(register(http), CUSTOMERS) for _ in range(USERS)]
    with ExitStack() as working:
        for customers in customers_of_users:
            working.callback(customers.stop)
        killed = kill(running, effort.times)
    ends = sum((counted(customers) for customers in customers_of_users), Counter[str]())
    audit = run("audit-orders")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    print(
        f"SIGKILLs: {dict(killed)}; of {USERS} users {ends.total()} orders acknowledged, {dict(ends)}: "
        f"0 lost, 0 doubled, 0 leaked; {audit.stdout.strip()}"
    )
    if effort.full:
        assert killed.keys() == {"api", "worker"}
        assert ends.keys() == {"confirmed", "rejected", "cancelled"}


def counted(customers: Customers) -> Counter[str]:
    """Checks how the orders of a user ended, that there is no other, and the credit they hold; counts by status."""
    user, placed = customers.user, customers.placed
    found = wait_all_settled(user, sorted(placed), 120)
    assert sorted(found) == sorted(placed)

    def wrong() -> dict[str, str]:
        found.update(wait_all_settled(user, sorted(placed), 120))
        return {order_id: found[order_id] for order_id in placed if found[order_id] not in placed[order_id]}

    # A cancellation is acknowledged before the list has it, and the worker that lists it may have been killed.
    eventually("each order has ended as acknowledged", lambda: wrong() == {}, 30)
    ends = Counter(found.values())
    eventually("only confirmed orders hold credit", lambda: CREDIT - user.credit() == ends["confirmed"], 60)
    return ends


def test_an_order_that_is_lost_would_be_found(running: RunningStack, user: ApiUser) -> None:
    """Negative control: without its events an acknowledged order is missed by the audit."""
    order_id = user.settled(user.place().json()["id"])["id"]
    move = "UPDATE events SET originator_id = %s WHERE originator_id = %s"
    other = str(uuid4())
    assert execute(running, "order_service", move, other, order_id) == 2
    try:
        audit = run("audit-orders")
    finally:
        assert execute(running, "order_service", move, order_id, other) == 2
    assert audit.returncode == 1, audit.stdout
    assert f"{order_id}: key" in audit.stdout
    assert f"{order_id}: credit" in audit.stdout
