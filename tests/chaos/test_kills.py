"""Hypothesis: whoever in the Order Service is killed at whatever moment, no acknowledged order is lost or doubled,
and credit ends where the orders say.
"""

from __future__ import annotations

import random
import time

import pytest
from crowd import Customers, all_settled, kill_one
from operator_commands import run
from people import Person
from stack_under_test import RunningStack, eventually
from tables import change

CUSTOMERS = 4

pytestmark = pytest.mark.usefixtures("whole")


def kill(running: RunningStack, times: int) -> None:
    """One after the other at random moments, some before the last has come back; at most half of a group at once."""
    for _ in range(times):
        group = random.choice(["api", "worker"])
        eventually("one of a group is left", lambda: len(running.pids("order-service", group)) == 2, 30)  # noqa: B023
        assert kill_one(running, "order-service", group)
        time.sleep(random.uniform(0.0, 1.5))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.long)])
def test_kills_under_load_lose_and_double_no_order_and_leak_no_credit(
    running: RunningStack, person: Person, kills: int
) -> None:
    customers = Customers(person, CUSTOMERS)
    try:
        kill(running, kills)
    finally:
        customers.stop()
    found = all_settled(person, customers.placed, 120)
    assert sorted(found) == sorted(customers.placed)
    assert {found[order_id] for order_id in customers.cancelled} <= {"cancelled"}
    confirmed = sum(status == "confirmed" for status in found.values())
    eventually("credit is held by living orders only", lambda: 100_000 - person.credit() == confirmed, 60)
    audit = run("audit-orders")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    print(
        f"{kills} SIGKILLs, {len(customers.placed)} orders acknowledged, {len(customers.cancelled)} cancelled: "
        f"0 lost, 0 doubled, 0 leaked; {audit.stdout.strip()}"
    )


def test_an_order_that_is_lost_would_be_found(running: RunningStack, person: Person) -> None:
    """Negative control: without its events an acknowledged order is missed by the audit."""
    order_id = person.settled(person.place().json()["id"])["id"]
    away = "UPDATE events SET originator_id = %s WHERE originator_id = %s"
    other = f"0{order_id[1:-1]}0"
    assert other != order_id
    assert change(running, "order_service", away, other, order_id) == 2
    try:
        audit = run("audit-orders")
    finally:
        assert change(running, "order_service", away, order_id, other) == 2
    assert audit.returncode == 1, audit.stdout
    assert f"{order_id}: key" in audit.stdout
    assert f"{order_id}: credit" in audit.stdout
