"""Measures projection lag under a load of orders: from the decision of an event to its visibility in lists."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from support.database_access import connect
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

POSITION = "SELECT position FROM projections WHERE name = 'orders'"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM events"
DECIDED = """SELECT notification_id,
                    extract(epoch FROM (convert_from(state, 'UTF8')::jsonb #>> '{meta,occurred_at}')::timestamptz)
             FROM events WHERE notification_id > %s"""
TARGET_RATE, TARGET_SECONDS = 50, 0.1
_LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class LagMeasurement:
    """Seconds from decision to visibility of each event, shortest first; `rate`: orders a second."""

    seconds: list[float]
    rate: float

    def quantile(self, share: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def reaches_the_target(self) -> bool:
        return self.rate >= 0.98 * TARGET_RATE and self.quantile(0.99) <= TARGET_SECONDS

    def __str__(self) -> str:
        p50, p99 = self.quantile(0.5) * 1000, self.quantile(0.99) * 1000
        return (
            f"{len(self.seconds)} events at {self.rate:.0f} orders/s: visible after p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )


class PositionWatcher(threading.Thread):
    """Records when the projection reaches each position."""

    def __init__(self, running: RunningStack) -> None:
        super().__init__(daemon=True)
        self.running, self.stopping = running, threading.Event()
        self.positions: list[int] = []
        self.times: list[float] = []

    def run(self) -> None:
        with connect(self.running, "order_service") as connection:
            while not self.stopping.wait(_LOOK_SECONDS):
                row = connection.execute(POSITION).fetchone()
                if row and (not self.positions or row[0] > self.positions[-1]):
                    self.positions.append(row[0])
                    self.times.append(time.time())

    def reached_at(self, position: int) -> float:
        """When a position was reached."""
        return self.times[bisect_left(self.positions, position)]


def measure(running: RunningStack, user: ApiUser, rate: float, seconds: float) -> LagMeasurement:
    """Places `rate` orders a second for some seconds, and measures when each event becomes visible."""
    watcher = PositionWatcher(running)
    watcher.start()
    with connect(running, "order_service") as connection:
        before = _one(connection.execute(HEAD).fetchone())
        reached = _load(user, rate, seconds)
        eventually("all is visible", lambda: watcher.positions[-1] >= _one(connection.execute(HEAD).fetchone()), 60)
        watcher.stopping.set()
        watcher.join(10)
        decided = [(at, float(when)) for at, when in connection.execute(DECIDED, (before,)).fetchall()]
    known = [(at, when) for at, when in decided if at <= watcher.positions[-1]]
    return LagMeasurement(sorted(max(0.0, watcher.reached_at(at) - when) for at, when in known), reached)


def _load(user: ApiUser, rate: float, seconds: float) -> float:
    line = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        calls = []
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            calls.append(pool.submit(user.place, line))
    replies = [call.result() for call in calls]
    assert {reply.status_code for reply in replies} == {httpx.codes.CREATED}
    return len(calls) / (time.monotonic() - began)


def _one(row: tuple[int] | None) -> int:
    return row[0] if row else 0
