"""Hypothesis: one of two instances that is slow, or that leaves Consul and returns, costs callers next to nothing.

Faults: an instance that is slow and sheds load, an instance that flaps in Consul. Observed: every answer. Controls: the
same load when both instances are slow; the calls that the flapping instance had at that moment.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser
from support.traffic.load import Request
from support.traffic.performance_targets import Effort, efforts
from support.traffic.unequal_instances import flap, slow_instances

SIGN_INS, WATCHES = 6, 4
# A starved machine may also be late with hashing passwords.
ANSWERED = {
    httpx.codes.CREATED,
    httpx.codes.TOO_MANY_REQUESTS,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
}

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("healthy")]
Arrivals = Callable[[int], Request]


@efforts(10, 60)
def test_one_slow_instance_at_full_load_leaves_nearly_all_calls_answered(
    running: RunningStack, reading: Arrivals, effort: Effort
) -> None:
    answered = {}
    for slow in (1, 2):
        with slow_instances(running, "order-service", reading(0), slow) as (backend, load):
            time.sleep(effort.amount)
            shed = sum(instance.shed for instance in backend.instances.values())
        answered[slow] = 1 - len(load.failures) / len(load.answers)
        print(f"{slow} of 2 instances slow, {shed} calls shed: {100 * answered[slow]:.1f} % answered; {load.report()}")
    assert answered[1] >= effort.bound(0.95, 0.7)
    assert answered[2] < 0.6, "control: two slow instances cannot carry the load"


@efforts(3, 15)
def test_an_instance_that_flaps_in_consul_fails_no_sign_in(
    running: RunningStack, user: ApiUser, effort: Effort
) -> None:
    flapped, changes = threading.Event(), []
    with ThreadPoolExecutor(SIGN_INS) as pool, httpx.Client(base_url=running.url("gateway"), timeout=60) as http:
        callers = [pool.submit(_sign_in_until, flapped, http, user) for _ in range(SIGN_INS)]
        try:
            for _ in range(effort.times):
                flap(running, "user-service", lambda: changes.append(time.monotonic()))
        finally:
            flapped.set()
        sign_ins = [sign_in for caller in callers for sign_in in caller.result()]
    statuses = Counter(sign_in.status for sign_in in sign_ins)
    in_progress = [sum(sign_in.began < change < sign_in.ended for sign_in in sign_ins) for change in changes]
    print(f"sign-ins while an instance flaps: {dict(statuses)}; in progress at each change: {in_progress}")
    assert max(in_progress) > 0, "control: sign-ins were in progress when the instance left"
    assert statuses.keys() <= ANSWERED
    assert statuses[httpx.codes.CREATED] > 0


@efforts(2, 10)
def test_an_instance_that_flaps_in_consul_cuts_no_watch(running: RunningStack, user: ApiUser, effort: Effort) -> None:
    for _ in range(effort.times):
        order = user.settled(user.place().json()["id"])["id"]
        with ThreadPoolExecutor(WATCHES) as pool:
            events: list[list[str]] = [[] for _ in range(WATCHES)]
            watches = [pool.submit(_watch, user, order, seen) for seen in events]
            eventually("each watch has begun", lambda: all(len(seen) == 2 for seen in events))  # noqa: B023
            flap(running, "order-service", lambda: _assert_open(watches))  # noqa: B023
            assert user.cancel(order).status_code == httpx.codes.OK
            for watch in watches:
                watch.result(30)
        assert [seen[-1] for seen in events] == ["OrderCancelled"] * WATCHES
        assert [len(seen) for seen in events] == [3] * WATCHES


class SignIn(NamedTuple):
    began: float
    ended: float
    status: int


def _sign_in_until(stopping: threading.Event, http: httpx.Client, user: ApiUser) -> list[SignIn]:
    """Signs in again and again, so that some sign-in is in progress whenever an instance leaves or returns."""
    sign_ins = []
    while not stopping.is_set():
        began = time.monotonic()
        reply = http.post("/v1/sessions", json={"email": user.email, "password": user.password})
        sign_ins.append(SignIn(began, time.monotonic(), reply.status_code))
    return sign_ins


def _watch(user: ApiUser, order: str, seen: list[str]) -> None:
    """Appends the name of each event until the stream ends; it is not resumed."""
    with user.http.stream("GET", f"/v1/orders/{order}/watch", headers=user.headers) as reply:
        seen.extend(line.removeprefix("event: ") for line in reply.iter_lines() if line.startswith("event: "))


def _assert_open(watches: list[Future[None]]) -> None:
    assert not any(watch.done() for watch in watches), "a watch has ended early"
