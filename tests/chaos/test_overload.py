"""Hypothesis: who is offered more than can be done does as much as before, and tells the rest so at once.

Fault: three times what the Order Service can do, bound by a slow database, not by the processor of this machine: the
load comes from the same two cores. Observed: every answer. Control: without limits nobody is refused and all are late.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from support.chaos_command import Chaos, quickest
from support.database_access import value
from support.kv_settings import turned
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Answer, Load, Request
from support.traffic.targets import Effort, efforts

LATE_MILLISECONDS = 200
CALLERS = 16
DISCONNECT = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = 'order_service' AND usename <> 'postgres'"""
NO_LIMIT = {"limiter": {"calls_at_least": 100_000, "calls_at_most": 100_000}}

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("steady")]
Arrivals = Callable[[int], Request]


@dataclass(frozen=True)
class Seen:
    """What became of a load: goodput a second, and the seconds that good answers and refusals took in the middle."""

    goodput: float
    answered: float
    refused: float
    refusals: list[Answer]
    failures: list[Answer]


@pytest.fixture
def slow(running: RunningStack, chaos: Chaos, reading: Arrivals) -> Iterator[None]:
    """Every answer of Postgres is late, so that ten connections are all that the Order Service can do."""
    chaos.order(f"latency postgres {LATE_MILLISECONDS}", 300)
    # Pools keep the connections they have; only new ones go the long way.
    value(running, "order_service", DISCONNECT)
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
        request = reading(0)
        eventually(
            "reads are late",
            lambda: quickest(lambda: http.get(request.path, headers=request.headers)) >= LATE_MILLISECONDS / 1000,
            30,
        )
    yield
    chaos.off()


def _peak(running: RunningStack, reading: Arrivals, seconds: float) -> float:
    """Good answers a second to callers who ask again as soon as they are answered; who is refused waits a little."""
    until = time.monotonic() + seconds

    def ask(number: int) -> int:
        good, request = 0, reading(number)
        with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
            while time.monotonic() < until:
                good += http.get(request.path, headers=request.headers).is_success or time.sleep(0.1) or 0
        return good

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(ask, range(CALLERS))) / seconds


def _offered(running: RunningStack, reading: Arrivals, rate: float, seconds: float) -> Seen:
    """What became of the requests of some seconds, a moment after the first ones came."""
    with Load(running.url("gateway"), rate, reading) as load:
        began = time.time() + 1.0
        eventually("the load has lasted", lambda: time.time() > began + seconds, seconds + 10)
        # Asked in the middle of it: nothing that must go on is refused.
        assert [len(running.instances(name)) for name in ("gateway", "order-service")] == [2, 2]
    seen = load.arrived(began, began + seconds)
    good = [answer.seconds for answer in seen if not answer.failed]
    refusals = [answer for answer in seen if answer.status == httpx.codes.SERVICE_UNAVAILABLE]
    failures = [answer for answer in seen if answer.failed and answer.status != httpx.codes.SERVICE_UNAVAILABLE]
    middle = [statistics.median(times) if times else 0.0 for times in (good, [one.seconds for one in refusals])]
    print(f"{rate:.0f} offered a second: {load.report()}")
    done = sum(began <= answer.at < began + seconds for answer in load.answers if not answer.failed)
    return Seen(done / seconds, *middle, refusals, failures)


@efforts(4, 20)
def test_three_times_of_what_can_be_done_costs_no_goodput_and_the_surplus_is_told_at_once(
    running: RunningStack, slow: None, reading: Arrivals, effort: Effort
) -> None:
    before = {name: running.pids(name) for name in ("gateway", "order-service")}
    peak = _peak(running, reading, effort.amount)
    seen = _offered(running, reading, 3 * peak, effort.amount)
    print(
        f"peak {peak:.0f}/s, at 3 x offered {seen.goodput:.0f}/s ({seen.goodput / peak:.2f} x), answered in "
        f"{1000 * seen.answered:.0f} ms; {len(seen.refusals)} refused in {1000 * seen.refused:.0f} ms, medians"
    )
    assert seen.goodput >= effort.bound(0.8, 0.4) * peak
    assert seen.refused < effort.bound(0.05, 5.0)
    assert len(seen.refusals) > effort.amount
    assert len(seen.failures) <= effort.bound(0, 50)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in seen.refusals)
    assert {name: running.pids(name) for name in before} == before


def test_without_limits_nobody_is_refused_and_everybody_waits(
    running: RunningStack, slow: None, reading: Arrivals
) -> None:
    """Negative control: the same load with the limits out of the way."""
    peak = _peak(running, reading, 3)
    with turned(running, "gateway", NO_LIMIT), turned(running, "order-service", NO_LIMIT):
        seen = _offered(running, reading, 3 * peak, 3)
    overloaded = sum("overloaded" in one.said for one in seen.refusals)
    print(f"without limits {overloaded} refused for them, answered in {1000 * seen.answered:.0f} ms")
    assert overloaded == 0
