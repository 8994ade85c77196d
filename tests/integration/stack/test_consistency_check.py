"""`audit-orders` finds nothing in a sound store, and every defect that is planted in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import httpx
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.database_access import execute, query_value
from support.mesh.channels import mesh_channel
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser, register

RESERVE = "INSERT INTO reservations (order_id, user_id, amount, state) VALUES (%s, %s, 7, 'held')"
KEEP = """INSERT INTO idempotency_keys (user_id, key, request_hash, order_id, expires_at)
          VALUES (%s, '{}', '', %s, now() + interval '1 hour')"""
FORGET = "DELETE FROM idempotency_keys WHERE user_id = %s AND order_id = %s AND key = '{}'"
STATE = "UPDATE reservations SET state = '{}' WHERE order_id = %s"
AMOUNT = "UPDATE reservations SET amount = amount {} 1 WHERE order_id = %s"
TOTAL = "UPDATE orders SET total = total {} 1 WHERE id = %s"
VERSION = "UPDATE events SET originator_version = {} WHERE originator_id = %s AND originator_version = {}"
STREAM = "UPDATE events SET originator_id = %s WHERE originator_id = %s AND originator_version = 2"
DELETE_KEY = "DELETE FROM idempotency_keys WHERE user_id = %s AND key = 'twin'"
OTHER_COMMAND = """UPDATE events SET state = convert_to(jsonb_set(convert_from(state, 'UTF8')::jsonb,
                       '{meta,command_id}', to_jsonb(originator_id))::text, 'UTF8')
                   WHERE originator_id = %s AND originator_version = 1"""
STREAM_BACK = """WITH ids AS (SELECT %s::uuid AS wrong, %s::uuid AS home)
                 UPDATE events SET originator_id = home FROM ids WHERE originator_id = wrong"""

# Each planted defect, with the text of its finding. Each has an order of its own.
DEFECTS = {
    "leaked": ["7 held", "nothing: there is no such order", "ReleaseCredit"],
    "kept": ["700 held", "released, for it is cancelled"],
    "short": ["699 held", "700 held, for it is confirmed"],
    "doubled": ["two keys", "one key at most", "find in table idempotency_keys"],
    "twin": ["placed by the same key as order", "one order of a key", "cancel the other"],
    "keyed": ["key stray stands for an order without events"],
    "damaged": ['"total": 701', '"total": 700', "./justw projection-rebuild orders"],
    "gap": ["version 3 after 1", "version 2"],
    "lost": ["pending without an outbox entry", "insert it into table outbox"],
    "headless": ["version 2 after 0", "version 1"],
}


@contextmanager
def planted(running: RunningStack, service: str, plant: str, mend: str, *ids: str) -> Iterator[None]:
    assert execute(running, service, plant, *ids) == 1
    try:
        yield
    finally:
        assert execute(running, service, mend, *ids) == 1


def confirmed(user: ApiUser) -> str:
    order = user.settled(user.place().json()["id"])
    assert order["status"] == "confirmed"
    return str(order["id"])


def cancelled(running: RunningStack, user: ApiUser) -> str:
    order_id = confirmed(user)
    assert user.cancel(order_id).status_code == httpx.codes.OK
    state = "SELECT state FROM reservations WHERE order_id = %s"
    eventually("it is given back", lambda: query_value(running, "user_service", state, order_id) == "released", 20)
    return order_id


def twin(running: RunningStack, user: ApiUser) -> str:
    """The second order of a key whose row is gone."""
    assert user.place(key="twin").status_code == httpx.codes.CREATED
    assert execute(running, "order_service", DELETE_KEY, user.id) == 1
    return str(user.settled(user.place(key="twin").json()["id"])["id"])


@pytest.fixture(scope="module")
def findings(running: RunningStack) -> Iterator[dict[str, str]]:
    """Returns the findings in a store with all defects, by the order of each; repairs the store afterwards."""
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http, ExitStack() as stack:
        user = register(http)
        orders = {name: str(uuid4()) for name in ("leaked", "keyed", "headless")}
        placed = {name: user.place().json()["id"] for name in ("short", "doubled", "damaged", "gap", "lost")}
        assert {user.settled(order)["status"] for order in placed.values()} == {"confirmed"}
        orders |= placed
        orders["kept"] = cancelled(running, user)
        orders["twin"] = twin(running, user)
        stack.callback(execute, running, "order_service", OTHER_COMMAND, orders["twin"])
        read = "SELECT count(*) FROM orders WHERE id = %s AND version = 2"
        for name in ("short", "doubled", "damaged", "gap", "lost"):
            eventually("it is in the list", lambda: query_value(running, "order_service", read, orders[name]) == 1)  # noqa: B023

        def plant(service: str, defect: str, mend: str, *ids: str) -> None:
            stack.enter_context(planted(running, service, defect, mend, *ids))

        delete = "DELETE FROM reservations WHERE order_id = %s AND user_id = %s"
        plant("user_service", RESERVE, delete, orders["leaked"], user.id)
        plant("user_service", STATE.format("held"), STATE.format("released"), orders["kept"])
        plant("user_service", AMOUNT.format("-"), AMOUNT.format("+"), orders["short"])
        plant("order_service", KEEP.format("twice"), FORGET.format("twice"), user.id, orders["doubled"])
        plant("order_service", KEEP.format("stray"), FORGET.format("stray"), user.id, orders["keyed"])
        plant("order_service", TOTAL.format("+"), TOTAL.format("-"), orders["damaged"])
        plant("order_service", VERSION.format(3, 2), VERSION.format(2, 3), orders["gap"])
        plant("order_service", STREAM, STREAM_BACK, orders["headless"], orders["lost"])
        audit = run("audit-orders")
        assert audit.returncode == 1, audit.stdout + audit.stderr
        lines = audit.stdout.splitlines()
        found = {name: "\n".join(_about(order, lines)) for name, order in orders.items()}
        yield found | {"user": audit.stdout if f"user {user.id}" in audit.stdout else ""}


def _about(order: str, lines: list[str]) -> Iterator[str]:
    """The four lines of each finding about an order."""
    for number, line in enumerate(lines):
        if line.startswith(order):
            yield from lines[number : number + 4]


def test_a_sound_store_has_no_findings(running: RunningStack, user: ApiUser) -> None:
    cancelled(running, user)
    user.place([{"sku": "gold", "quantity": 1, "unit_price": 10**6}])
    audit = run("audit-orders")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "no findings" in audit.stdout


def call(running: RunningStack, method: str, request: dict[str, str]) -> None:
    """Makes the call of an advice to an instance of its service, as the operator."""
    service, _, name = method.partition("/")
    job = "user-service" if service.startswith("shop.user") else "order-service"
    with mesh_channel(running.clients, job) as channel:
        contract = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(service)
        message = message_factory.GetMessageClass(contract.FindMethodByName(name).input_type)()
        send = channel.unary_unary(f"/{method}", request_serializer=lambda sent: sent.SerializeToString())
        send(json_format.ParseDict(request, message), timeout=10)


def test_the_next_step_of_a_finding_is_a_call_that_mends_it(running: RunningStack, user: ApiUser) -> None:
    order_id = confirmed(user)
    call(running, "shop.user.v1.UserService/ReleaseCredit", {"order_id": order_id, "user_id": user.id})
    found = "\n".join(_about(order_id, run("audit-orders").stdout.splitlines()))
    step = re.search(r"next +call (\S+) with (\{.*?\})", found)
    assert step, found
    call(running, step[1], json.loads(step[2]))
    assert user.order(order_id)["status"] == "cancelled"
    eventually("there is no finding any more", lambda: order_id not in run("audit-orders").stdout, 60, every=1)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_a_finding_with_the_actual_and_the_expected_state_and_a_next_step(
    findings: dict[str, str], defect: str
) -> None:
    assert [words for words in DEFECTS[defect] if words not in findings[defect]] == [], findings[defect]


def test_a_user_whose_credit_is_not_the_sum_of_reservations_is_a_finding(findings: dict[str, str]) -> None:
    assert "the sum of its reservations" in findings["user"]
