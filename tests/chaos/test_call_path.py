"""Hypothesis: each defence of the call path keeps what it promises while its fault lasts, and stops when it is over.

Fault: kills, a backend that fails, callers that hang up, too many calls, logins that end. Observed: every answer, and
every call where it arrives. Recovery: by itself. Control: with its setting turned off the promise is broken.
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
from support.kv_settings import turned
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person
from support.traffic.concurrent_users import all_settled, every_order, insist, kill_one
from support.traffic.load import Answer, Load, Request
from support.traffic.stub_server import StandIn, standing_before
from support.traffic.targets import Effort, efforts

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
GROUPS = [("gateway", None), ("user-service", None), ("order-service", "api")]
FAR = 100_000

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("steady")]
Arrivals = Callable[[int], Request]


# --- kills


@efforts(3, 20)
def test_kills_of_random_instances_lose_and_double_no_order_and_are_over_at_once(
    running: RunningStack, person: Person, placing: Arrivals, effort: Effort
) -> None:
    listed = {order["id"] for order in every_order(person)}
    killed = []
    with Load(running.url("gateway"), 12, placing) as load:
        for job, group in _victims(effort.times):
            killed.append(time.time())
            assert kill_one(running, job, group)
            running.steady()
    back = [load.regained(at, until) for at, until in pairwise([*killed, time.time()])]
    reads = [answer for answer in load.answers if answer.request.method == "GET"]
    share = sum(answer.failed for answer in reads) / len(reads)
    orders = _each_key_one_order(person, load, listed)
    eventually("a penny is held for each order", lambda: 100_000 - person.credit() == len(listed) + orders, 30)
    print(
        f"{len(killed)} SIGKILLs: {orders} keys, 0 orders lost or doubled; {100 * share:.2f} % of {len(reads)} reads "
        f"failed; goodput 95 % after {max(back):.1f} s at most; {load.report()}"
    )
    assert share <= effort.bound(0.001, 0.02)
    assert max(back) <= effort.bound(2.0, 15.0)


def _victims(count: int) -> list[tuple[str, str | None]]:
    """Each of them at least once, in any order."""
    found = GROUPS + random.choices(GROUPS, k=count - len(GROUPS))
    return random.sample(found, len(found))


def _each_key_one_order(person: Person, load: Load, before: set[str]) -> int:
    """Sends every key once more: what was acknowledged is the answer again, and every order there is has a key."""
    answers = [answer for answer in load.answers if answer.request.method == "POST"]
    found = {_again(person, answer) for answer in answers}
    assert len(found) == len(answers)
    statuses = all_settled(person, sorted(found), 90)
    assert {statuses[order] for order in found} == {"confirmed"}
    assert {order["id"] for order in every_order(person)} == found | before
    return len(found)


def _again(person: Person, answer: Answer) -> str:
    reply = insist(lambda: person.place(PENNY, key=answer.request.headers["Idempotency-Key"]))
    assert reply.status_code == httpx.codes.CREATED, reply.text
    assert answer.failed or answer.headers["location"] == reply.headers["location"]
    return str(reply.json()["id"])


# --- a backend that fails


@efforts(5, 30)
def test_a_failing_backend_is_asked_no_more_than_callers_ask_and_is_back_soon(
    running: RunningStack, reading: Arrivals, effort: Effort
) -> None:
    with standing_before(running, "order-service") as backend, Load(running.url("gateway"), 20, reading) as load:
        eventually("the load flows", lambda: len(backend.attempts) > 40, 30)
        began = time.time()
        backend.failing = True
        eventually("every gateway's breaker is open", lambda: running.breakers("order-service") == {"open"}, 20, 0.05)
        opened = time.time() - began
        time.sleep(effort.amount)
        backend.failing, healed = False, time.time()
        enough = len(load.answers) + 200
        eventually("calls went on afterwards", lambda: len(load.answers) > enough, 60)
    offered, attempts = len(load.arrived(began, healed)), backend.between(began, healed)
    back = load.regained(healed)
    print(
        f"failing for {healed - began:.0f} s: {attempts} attempts of {offered} offered ({attempts / offered:.2f} x), "
        f"breakers open after {opened:.2f} s, goodput 95 % {back:.1f} s after healing; {load.report()}"
    )
    assert attempts <= 1.1 * offered
    assert opened <= effort.bound(1.0, 10.0)
    assert back <= effort.bound(5.0, 20.0)


NO_BREAKER = {"failures_in_a_row": FAR, "minimum_calls": FAR}
BUDGET = {"budget_ratio": 0.1, "budget_per_second": 0.0, "budget_saved": 1}
NO_BUDGET = {"budget_ratio": 1.0, "budget_per_second": 1000.0, "budget_saved": 10_000}


def test_without_the_budget_a_failing_backend_is_asked_more_than_callers_ask(
    running: RunningStack, reading: Arrivals
) -> None:
    """Negative control, the breaker out of the way both times: it is the budget that keeps retries at a tenth."""
    ratios = {}
    with (
        standing_before(running, "order-service") as backend,
        turned(running, "gateway", {"orders": {"breaker": NO_BREAKER}}),
        Load(running.url("gateway"), 20, reading) as load,
    ):

        def felt(least: float, most: float) -> bool:
            """A breaker that has opened before it knew better closes when calls pass."""
            backend.failing = running.breakers("order-service") == {"closed"}
            return backend.failing and least < _ratio(backend, load, 2.0) < most

        for name, retry, least, most in (("without", NO_BUDGET, 1.5, 4.0), ("with", BUDGET, 0.8, 1.2)):
            with turned(running, "gateway", {"orders": {"retry": retry}}):
                eventually(f"it is felt that retries are {name} budget", lambda: felt(least, most), 40, 0.3)  # noqa: B023
                began = time.time()
                eventually("enough was asked", lambda: len(load.arrived(began, time.time())) >= 80, 30)  # noqa: B023
                ratios[name] = _ratio(backend, load, time.time() - began)
    print(f"attempts / offered, no breaker: {ratios['with']:.2f} with the budget, {ratios['without']:.2f} without")
    assert ratios["with"] <= 1.25
    assert ratios["without"] > 1.5


def _ratio(backend: StandIn, load: Load, seconds: float) -> float:
    """Attempts that reached the backend for each request, of those that arrived lately and have been answered."""
    now = time.time()
    return backend.between(now - seconds, now) / max(1, len(load.arrived(now - seconds, now)))


# --- callers that hang up


@efforts(200, 1000)
def test_callers_that_hang_up_trip_nothing(
    running: RunningStack, person: Person, reading: Arrivals, effort: Effort
) -> None:
    request = reading(0)
    lines = [f"GET {request.path} HTTP/1.1", "Host: gateway", *(f"{k}: {v}" for k, v in request.headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    with standing_before(running, "order-service") as backend:
        backend.pause = 0.3
        with Load(running.url("gateway"), 5, reading) as load, ThreadPoolExecutor(4) as pool:
            hung_up = sum(pool.map(lambda _: _hang_up(running.url("gateway"), head), range(effort.times)))
            breakers = running.breakers("order-service")
    print(
        f"{hung_up} of {effort.times} callers hung up in the middle of a call, {backend.cancelled} calls were cancelled "
        f"at the far end; breakers {breakers}, others: {load.report()}"
    )
    assert hung_up > effort.amount / 2
    assert backend.cancelled > effort.amount / 4
    assert breakers == {"closed"}
    assert load.failures == []


def _hang_up(url: str, head: bytes) -> bool:
    """Ask, and go away a moment later; whether that was before the answer."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(head)
        connection.settimeout(0.15)
        try:
            return not connection.recv(1)
        except TimeoutError:
            return True
