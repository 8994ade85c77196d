"""Hypothesis: a key stands for one order, however often it is sent at once and whoever is killed meanwhile."""

from __future__ import annotations

import random

import httpx
import pytest
from support.database_access import value
from support.stack_under_test import RunningStack
from support.traffic.api_user import Person
from support.traffic.concurrent_users import Crowd, killing

SENDERS = 16
HISTORIES = """SELECT count(*) FROM events WHERE originator_version = 1
               AND convert_from(state, 'UTF8')::jsonb #>> '{data,user_id}' = %s"""

pytestmark = pytest.mark.usefixtures("whole")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("keys", [60, pytest.param(10_000, marks=pytest.mark.long)])
def test_keys_sent_many_times_while_instances_are_killed_place_one_order_each(
    running: RunningStack, person: Person, keys: int
) -> None:
    crowd = Crowd(person, SENDERS)
    with killing(running, "order-service", "api", every=2.0) as killed:
        for number in range(keys):
            crowd.send(f"key-{number}", random.randint(2, 10))
        crowd.wait()
    sent = sum(len(copies) for copies in crowd.answers.values())
    assert killed
    assert crowd.different() == {}
    statuses = {copy.result()[0] for copies in crowd.answers.values() for copy in copies}
    assert statuses == {httpx.codes.CREATED}
    assert value(running, "order_service", HISTORIES, person.id) == keys
    print(f"{keys} keys, {sent} requests, {len(killed)} SIGKILLs: {keys} orders, all answers of a key equal")


def test_without_a_common_key_each_request_is_an_order_of_its_own(running: RunningStack, person: Person) -> None:
    """Negative control: what the test above counts would not be one each by itself."""
    crowd = Crowd(person, SENDERS)
    for number in range(10):
        crowd.send(f"key-{number}", 3, with_key=False)
    crowd.wait()
    assert len(crowd.different()) == 10
    assert value(running, "order_service", HISTORIES, person.id) == 30
