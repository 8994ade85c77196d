"""Hypothesis: a key places one order, however often it is sent at once and while instances are killed."""

from __future__ import annotations

import random

import httpx
import pytest
from support.database_access import query_value
from support.stack_under_test import RunningStack
from support.traffic.api_user import ApiUser
from support.traffic.concurrent_users import ConcurrentUsers, killing

SENDERS = 16
KILLS = 2
HISTORIES = """SELECT count(*) FROM events WHERE originator_version = 1
               AND convert_from(state, 'UTF8')::jsonb #>> '{data,user_id}' = %s"""

pytestmark = pytest.mark.usefixtures("healthy")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("keys", [60, pytest.param(10_000, marks=pytest.mark.long)])
def test_keys_sent_many_times_while_instances_are_killed_place_one_order_each(
    running: RunningStack, user: ApiUser, keys: int
) -> None:
    users = ConcurrentUsers(user, SENDERS)
    with killing(running, "order-service", "api", every=2.0) as killed:
        while len(users.answers) < keys or len(killed) < KILLS:
            users.send(f"key-{len(users.answers)}", random.randint(2, 10))
            users.wait_for_a_place()
        users.wait()
    keys, sent = len(users.answers), sum(len(copies) for copies in users.answers.values())
    assert users.unequal() == {}
    statuses = {copy.result()[0] for copies in users.answers.values() for copy in copies}
    assert statuses == {httpx.codes.CREATED}
    assert query_value(running, "order_service", HISTORIES, user.id) == keys
    print(f"{keys} keys, {sent} requests, {len(killed)} SIGKILLs: {keys} orders, all answers of a key equal")


def test_without_a_common_key_each_request_is_an_order_of_its_own(running: RunningStack, user: ApiUser) -> None:
    """Control: without a common key the same requests place an order each."""
    users = ConcurrentUsers(user, SENDERS)
    for number in range(10):
        users.send(f"key-{number}", 3, with_key=False)
    users.wait()
    assert len(users.unequal()) == 10
    assert query_value(running, "order_service", HISTORIES, user.id) == 30
