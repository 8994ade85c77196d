"""`audit-orders` says nothing of a sound store, and names each defect that is planted in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from operator_commands import run
from people import Person
from stack_under_test import RunningStack, eventually
from tables import change, value


@pytest.fixture
def confirmed(person: Person) -> dict[str, Any]:
    order = person.settled(person.place().json()["id"])
    assert order["status"] == "confirmed"
    return order


@contextmanager
def planted(running: RunningStack, service: str, plant: str, mend: str, *ids: str) -> Iterator[None]:
    assert change(running, service, plant, *ids) == 1
    try:
        yield
    finally:
        change(running, service, mend, *ids)


def findings(*named: str) -> str:
    """What an audit says that finds something, which must name each of these words."""
    audit = run("audit-orders")
    assert audit.returncode == 1, audit.stdout + audit.stderr
    assert [word for word in named if word not in audit.stdout] == [], audit.stdout
    return audit.stdout


def test_a_sound_store_has_no_findings(running: RunningStack, person: Person) -> None:
    cancelled = person.settled(person.place().json()["id"])
    person.cancel(cancelled["id"])
    person.place([{"sku": "gold", "quantity": 1, "unit_price": 10**6}])
    audit = run("audit-orders")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "no findings" in audit.stdout


def test_credit_held_for_no_order_is_named(running: RunningStack, person: Person) -> None:
    stray = str(uuid4())
    plant = "INSERT INTO reservations (order_id, user_id, amount, state) VALUES (%s, %s, 7, 'held')"
    with planted(
        running,
        "user_service",
        plant,
        "DELETE FROM reservations WHERE order_id = %s AND user_id = %s",
        stray,
        person.id,
    ):
        said = findings(stray, "7 held", "there is no such order", "ReleaseCredit", f"user {person.id}")
    assert "held = 7, the sum" in said


def test_credit_that_a_cancelled_order_still_holds_is_named(
    running: RunningStack, person: Person, confirmed: dict[str, Any]
) -> None:
    order_id = confirmed["id"]
    person.cancel(order_id)
    state = "SELECT state FROM reservations WHERE order_id = %s"
    eventually("it is given back", lambda: value(running, "user_service", state, order_id) == "released")
    update = "UPDATE reservations SET state = '{}' WHERE order_id = %s"
    with planted(running, "user_service", update.format("held"), update.format("released"), order_id):
        findings(order_id, "700 held", "released, for it is cancelled")


def test_a_confirmed_order_without_its_credit_is_named(running: RunningStack, confirmed: dict[str, Any]) -> None:
    update = "UPDATE reservations SET amount = amount {} 1 WHERE order_id = %s"
    with planted(running, "user_service", update.format("-"), update.format("+"), confirmed["id"]):
        findings(confirmed["id"], "699 held", "700 held, for it is confirmed")


def test_an_order_with_two_keys_is_named(running: RunningStack, confirmed: dict[str, Any]) -> None:
    plant = """INSERT INTO idempotency_keys SELECT user_id, 'doubled', request_hash, order_id, expires_at
               FROM idempotency_keys WHERE order_id = %s"""
    mend = "DELETE FROM idempotency_keys WHERE order_id = %s AND key = 'doubled'"
    with planted(running, "order_service", plant, mend, confirmed["id"]):
        findings(confirmed["id"], "two keys", "one key at most", "idempotency_keys")


def test_a_key_of_an_order_that_never_was_is_named(running: RunningStack, person: Person) -> None:
    stray = str(uuid4())
    plant = """INSERT INTO idempotency_keys (user_id, key, request_hash, order_id, expires_at)
               VALUES (%s, 'stray', '', %s, now() + interval '1 hour')"""
    mend = "DELETE FROM idempotency_keys WHERE user_id = %s AND order_id = %s"
    with planted(running, "order_service", plant, mend, person.id, stray):
        findings(stray, "key stray stands for an order without events")


def test_a_damaged_row_is_named_and_how_to_mend_it(running: RunningStack, confirmed: dict[str, Any]) -> None:
    update = "UPDATE orders SET total = total {} 1 WHERE id = %s"
    with planted(running, "order_service", update.format("+"), update.format("-"), confirmed["id"]):
        findings(confirmed["id"], "read table", '"total": 701', '"total": 700', "./justw projection-rebuild orders")


def test_a_pending_order_that_nobody_will_finish_is_named(running: RunningStack, person: Person) -> None:
    running.scale("user-service", "api", 0)
    try:
        eventually("the User Service is gone", lambda: not running.pids("user-service"), 30)
        order_id = person.place().json()["id"]
        errand = "SELECT position FROM errands WHERE order_id = %s"
        position = eventually("it is owed", lambda: value(running, "order_service", errand, order_id))
        assert change(running, "order_service", "DELETE FROM errands WHERE order_id = %s", order_id) == 1
    finally:
        running.scale("user-service", "api", 2)
        eventually("the User Service is back", lambda: len(running.instances("user-service")) == 2, 60)
    findings(order_id, "pending without an errand", f"position {position}")
    owe = "INSERT INTO errands (position, order_id, kind, traceparent) VALUES (%s, %s, 'reserve', '')"
    change(running, "order_service", owe, position, order_id)
    assert person.settled(order_id, 30)["status"] == "confirmed"


def test_a_gap_in_a_history_is_named(running: RunningStack, confirmed: dict[str, Any]) -> None:
    update = "UPDATE events SET originator_version = {} WHERE originator_id = %s AND originator_version = {}"
    with planted(running, "order_service", update.format(3, 2), update.format(2, 3), confirmed["id"]):
        findings(confirmed["id"], "history", "version 3 after 1")
