"""Hypothesis: under overload goodput continues, and surplus requests are rejected with a hint when to retry.

Fault: three times the capacity of the Order Service. A slow database sets the capacity, because the load runs on the
same cores. Observed: every answer. Control: without limits no request is rejected and every answer is late.
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
from support.database_access import query_value
from support.kv_settings import changed_settings
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Answer, Load, Request
from support.traffic.performance_targets import Effort, efforts

LATE_MILLISECONDS = 200
CALLERS = 16
DISCONNECT = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = 'order_service' AND usename <> 'postgres'"""
NO_LIMIT = {"limiter": {"calls_at_least": 100_000, "calls_at_most": 100_000}}
NO_LIMIT_OF_GATEWAY = NO_LIMIT | {"clients": {"calls_per_user": 100_000}, "queue_seconds": 60.0}

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("healthy")]
Arrivals = Callable[[int], Request]


@dataclass(frozen=True)
class Seen:
    """Outcome of a load: goodput a second, and the seconds of good answers (median, 99 %) and rejections (median)."""

    goodput: float
    answered: float
    slowest: float
    rejected: float
    rejections: list[Answer]
    failures: list[Answer]


@pytest.fixture
def slow(running: RunningStack, chaos: Chaos, reading: Arrivals) -> Iterator[None]:
    """Delays every answer of Postgres, so that the ten connections of a pool are the capacity."""
    chaos.start(f"latency postgres {LATE_MILLISECONDS}", 300)
    # Only new connections pass through the proxy.
    query_value(running, "order_service", DISCONNECT)
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
    """Good answers a second to callers who ask again after each answer, and a little later after a rejection."""
    until = time.monotonic() + seconds

    def ask(number: int) -> int:
        good, request = 0, reading(number)
        with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
            while time.monotonic() < until:
                if http.get(request.path, headers=request.headers).is_success:
                    good += 1
                else:
                    time.sleep(0.1)
        return good

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(ask, range(CALLERS))) / seconds


def _offered(running: RunningStack, reading: Arrivals, rate: float, seconds: float) -> Seen:
    """Sends a load, and returns the outcome of the requests of some seconds, without the first second."""
    with Load(running.url("gateway"), rate, reading) as load:
        began = time.time() + 1.0
        eventually("the load has lasted", lambda: time.time() > began + seconds, seconds + 10)
        # Health checks are never rejected.
        assert [len(running.instances(name)) for name in ("gateway", "order-service")] == [2, 2]
    seen = load.arrived_between(began, began + seconds)
    good = [answer.seconds for answer in seen if not answer.failed]
    rejections = [answer for answer in seen if answer.status == httpx.codes.SERVICE_UNAVAILABLE]
    failures = [answer for answer in seen if answer.failed and answer.status != httpx.codes.SERVICE_UNAVAILABLE]
    print(f"{rate:.0f} offered a second: {load.report()}")
    done = sum(began <= answer.at < began + seconds for answer in load.answers if not answer.failed)
    rejected = [answer.seconds for answer in rejections]
    slowest = statistics.quantiles(good, n=100)[-1] if len(good) > 1 else 0.0
    return Seen(done / seconds, _median(good), slowest, _median(rejected), rejections, failures)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


@efforts(4, 20)
def test_three_times_the_capacity_collapses_no_goodput_and_rejects_the_surplus_with_retry_after(
    running: RunningStack, slow: None, reading: Arrivals, effort: Effort
) -> None:
    """Goodput stays above 0.4 of the peak, with `-m long` above 0.8."""
    before = {name: running.pids(name) for name in ("gateway", "order-service")}
    peak = _peak(running, reading, effort.amount)
    seen = _offered(running, reading, 3 * peak, effort.amount)
    print(
        f"peak {peak:.0f}/s, at 3 x offered {seen.goodput:.0f}/s ({seen.goodput / peak:.2f} x), answered in "
        f"{1000 * seen.answered:.0f} ms (99 %: {1000 * seen.slowest:.0f} ms); {len(seen.rejections)} rejected in "
        f"{1000 * seen.rejected:.0f} ms, medians"
    )
    assert seen.goodput >= effort.bound(0.8, 0.4) * peak
    assert seen.rejected <= effort.bound(0.2, 2.0)
    assert seen.slowest <= effort.bound(1.5, 4.0)
    assert len(seen.rejections) > effort.amount
    assert len(seen.failures) <= effort.bound(0, 50)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in seen.rejections)
    assert {name: running.pids(name) for name in before} == before


def test_without_limits_no_request_is_rejected_as_overloaded(
    running: RunningStack, slow: None, reading: Arrivals
) -> None:
    """Control: the same load without limits."""
    peak = _peak(running, reading, 3)
    with (
        changed_settings(running, "gateway", NO_LIMIT_OF_GATEWAY),
        changed_settings(running, "order-service", NO_LIMIT),
    ):
        seen = _offered(running, reading, 3 * peak, 3)
    # The edge keeps its limit. What it rejects has reached no gateway, so no span of it is recorded.
    of_services = [each for each in seen.rejections if not each.headers["traceresponse"].endswith("-00")]
    overloaded = sum("overloaded" in each.body for each in of_services)
    print(f"without limits {overloaded} rejected for them, answered in {1000 * seen.answered:.0f} ms")
    assert overloaded == 0
