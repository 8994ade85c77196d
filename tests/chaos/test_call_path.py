"""Hypothesis: retries, breakers and outlier detection limit the damage of a fault, and recovery needs no operator.

Faults: killed instances, a failing backend, callers that hang up. Observed: every answer, and every call where it
arrives. Control: without the retry budget, a failing backend gets more calls than callers make.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from urllib.parse import urlsplit

import httpx
import pytest
from support.kv_settings import changed_settings
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser
from support.traffic.concurrent_users import every_order, kill_one, retry_until_answered, wait_all_settled
from support.traffic.load import Answer, Load, Request
from support.traffic.performance_targets import Effort, efforts
from support.traffic.stub_server import StubServer, stubbed

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
GROUPS = [("gateway", None), ("user-service", None), ("order-service", "api")]

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("healthy")]
Arrivals = Callable[[int], Request]


# --- kills


@efforts(3, 20)
def test_kills_of_random_instances_lose_and_double_no_order(
    running: RunningStack, user: ApiUser, placing: Arrivals, effort: Effort
) -> None:
    listed = {order["id"] for order in every_order(user)}
    killed = []
    with Load(running.url("gateway"), 12, placing) as load:
        for job, group in _victims(effort.times):
            killed.append(time.time())
            assert kill_one(running, job, group)
            running.wait_until_healthy()
    back = [load.recovery_seconds(at, until) for at, until in pairwise([*killed, time.time()])]
    reads = [answer for answer in load.answers if answer.request.method == "GET"]
    share = sum(answer.failed for answer in reads) / len(reads)
    orders = _each_key_one_order(user, load, listed)
    eventually("a penny is held for each order", lambda: 100_000 - user.credit() == len(listed) + orders, 30)
    print(
        f"{len(killed)} SIGKILLs: {orders} keys, 0 orders lost or doubled; {100 * share:.2f} % of {len(reads)} reads "
        f"failed; goodput 95 % after {max(back):.1f} s at most; {load.report()}"
    )
    assert share <= effort.bound(0.001, 0.02)
    assert max(back) <= effort.bound(2.0, 15.0)


def _victims(count: int) -> list[tuple[str, str | None]]:
    """Random victims; each group at least once."""
    found = GROUPS + random.choices(GROUPS, k=count - len(GROUPS))
    return random.sample(found, len(found))


def _each_key_one_order(user: ApiUser, load: Load, before: set[str]) -> int:
    """Sends every key again: an acknowledged order is returned again, and every order has a key."""
    answers = [answer for answer in load.answers if answer.request.method == "POST"]
    found = {_again(user, answer) for answer in answers}
    assert len(found) == len(answers)
    statuses = wait_all_settled(user, sorted(found), 90)
    assert {statuses[order] for order in found} == {"confirmed"}
    assert {order["id"] for order in every_order(user)} == found | before
    return len(found)


def _again(user: ApiUser, answer: Answer) -> str:
    reply = retry_until_answered(lambda: user.place(PENNY, key=answer.request.headers["Idempotency-Key"]))
    assert reply.status_code == httpx.codes.CREATED, reply.text
    assert answer.failed or answer.headers["location"] == reply.headers["location"]
    return str(reply.json()["id"])


# --- a backend that fails


@efforts(5, 30)
def test_a_failing_backend_gets_at_most_a_tenth_more_calls_than_callers_make(
    running: RunningStack, reading: Arrivals, effort: Effort
) -> None:
    with stubbed(running, "order-service") as backend, Load(running.url("gateway"), 20, reading) as load:
        eventually("the load flows", lambda: len(backend.attempts) > 40, 30)
        began = time.time()
        backend.failing = True
        eventually("every gateway's breaker is open", lambda: running.breakers("order-service") == {"open"}, 20, 0.05)
        opened = time.time() - began
        time.sleep(effort.amount)
        backend.failing, healed = False, time.time()
        enough = len(load.answers) + 200
        eventually("calls went on afterwards", lambda: len(load.answers) > enough, 60)
    offered, attempts = len(load.arrived_between(began, healed)), backend.between(began, healed)
    back = load.recovery_seconds(healed)
    print(
        f"failing for {healed - began:.0f} s: {attempts} attempts of {offered} offered ({attempts / offered:.2f} x), "
        f"breakers open after {opened:.2f} s, goodput 95 % {back:.1f} s after healing; {load.report()}"
    )
    assert attempts <= 1.1 * offered
    assert opened <= effort.bound(1.0, 10.0)
    assert back <= effort.bound(5.0, 20.0)


NO_BREAKER = {"failure_ratio": 1.0}
BUDGET = {"retry_budget_ratio": 0.1}
NO_BUDGET = {"retry_budget_ratio": 2.0}


def test_without_the_retry_budget_a_failing_backend_gets_more_calls_than_callers_make(
    running: RunningStack, reading: Arrivals
) -> None:
    """Control, without the breaker both times: the budget keeps retries at a tenth."""
    ratios = {}
    with (
        stubbed(running, "order-service") as backend,
        changed_settings(running, "gateway", {"orders": NO_BREAKER}),
        Load(running.url("gateway"), 20, reading) as load,
    ):

        def applied(least: float, most: float) -> bool:
            """True once the ratio is in range; a breaker that opened before its setting changed must close first."""
            backend.failing = running.breakers("order-service") == {"closed"}
            return backend.failing and least < _ratio(backend, load, 2.0) < most

        for name, retry, least, most in (("without", NO_BUDGET, 1.5, 4.0), ("with", BUDGET, 0.8, 1.2)):
            with changed_settings(running, "gateway", {"orders": retry}):
                eventually(f"retries {name} the budget are applied", lambda: applied(least, most), 40, 0.3)  # noqa: B023
                began = time.time()
                eventually("there are enough requests", lambda: len(load.arrived_between(began, time.time())) >= 80, 30)  # noqa: B023
                ratios[name] = _ratio(backend, load, time.time() - began)
    print(f"attempts / offered, no breaker: {ratios['with']:.2f} with the budget, {ratios['without']:.2f} without")
    assert ratios["with"] <= 1.25
    assert ratios["without"] > 1.5


def _ratio(backend: StubServer, load: Load, seconds: float) -> float:
    """Attempts at the backend for each answered request of the last `seconds`."""
    now = time.time()
    return backend.between(now - seconds, now) / max(1, len(load.arrived_between(now - seconds, now)))


# --- callers that hang up


@efforts(200, 1000)
def test_callers_that_hang_up_open_no_breaker(
    running: RunningStack, user: ApiUser, reading: Arrivals, effort: Effort
) -> None:
    request = reading(0)
    lines = [f"GET {request.path} HTTP/1.1", "Host: gateway", *(f"{k}: {v}" for k, v in request.headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    with stubbed(running, "order-service") as backend:
        backend.pause = 0.3
        with Load(running.url("gateway"), 5, reading) as load, ThreadPoolExecutor(4) as pool:
            hung_up = sum(pool.map(lambda _: _hang_up(running.url("gateway"), head), range(effort.times)))
            breakers = running.breakers("order-service")
    print(
        f"{hung_up} of {effort.times} callers hung up during a call, {backend.cancelled} calls were cancelled at the "
        f"backend; breakers {breakers}, others: {load.report()}"
    )
    assert hung_up > effort.amount / 2
    assert backend.cancelled > effort.amount / 4
    assert breakers == {"closed"}
    assert load.failures == []


def _hang_up(url: str, head: bytes) -> bool:
    """Sends a request and closes the connection a moment later; True if that was before the answer."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(head)
        connection.settimeout(0.15)
        try:
            return not connection.recv(1)
        except TimeoutError:
            return True
