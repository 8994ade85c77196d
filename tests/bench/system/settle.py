"""Measures placed and settled orders a second on the running stack: 12 clients place 4,000 orders as fast as they can.

An order is settled when it has its final state and no outbox entry is left. A client that gets 503 or 429 waits and
tries again, so the rate is the highest that is answered. The goal is that settling keeps pace: as many a second as are
placed, and no entry older than 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass

import psycopg
import uvloop
from bench.traffic.api_users import PENNY, BenchUser, make_users
from bench.traffic.http_client import Connection, request
from bench.traffic.load import source
from support.database_access import connect
from support.stack_under_test import RunningStack

PLACED, RETRYABLE = 201, {0, 429, 502, 503, 504}
GOAL_SECONDS = 2.0
_LOOK_SECONDS, _PATIENCE_SECONDS = 0.5, 300.0
_STATE = """SELECT (SELECT count(*) FROM outbox),
                   extract(epoch FROM now() - least((SELECT min(created_at) FROM outbox),
                                                    (SELECT min(placed_at) FROM orders WHERE status = 'pending'))),
                   (SELECT count(*) FROM orders WHERE status <> 'pending'),
                   (SELECT coalesce(max(notification_id), 0) FROM events) - (SELECT min(position) FROM projections)"""


@dataclass(frozen=True)
class Look:
    """The store at a moment: open entries, age of the oldest open order, settled orders, events not projected."""

    at: float
    open: int
    oldest: float
    settled: int
    behind: int


def look(connection: psycopg.Connection[tuple[int, float | None, int, int]]) -> Look:
    pending, oldest, settled, behind = connection.execute(_STATE).fetchone() or (0, 0.0, 0, 0)
    return Look(time.monotonic(), pending, float(oldest or 0.0), settled, behind)


class Clients:
    """Some clients that together place a number of orders."""

    def __init__(self, port: int, users: list[BenchUser], orders: int) -> None:
        self._port, self._users = port, users
        self._left = iter(range(orders))
        self.statuses: Counter[int] = Counter()
        self.ended_at = 0.0

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(clients)))
        self.ended_at = time.monotonic()

    async def _client(self, number: int) -> None:
        connection, users = Connection(self._port, source(number)), itertools.cycle(self._users[number:] + self._users)
        body = json.dumps({"currency": "EUR", "lines": PENNY}).encode()
        for _ in self._left:
            headers = next(users).headers | {"Content-Type": "application/json"}
            sent = request("POST", "/v1/orders", headers | {"Idempotency-Key": secrets.token_hex(16)}, body)
            while (answer := await connection.exchange(sent)).status in RETRYABLE:
                self.statuses[answer.status] += 1
                await asyncio.sleep(0.2)
            self.statuses[answer.status] += 1
        connection.close()


async def measure(running: RunningStack, clients: Clients, count: int, orders: int) -> list[Look]:
    """Places the orders; returns a look every half second until all are settled."""
    with connect(running, "order_service") as connection:
        looks = [look(connection)]
        placing = asyncio.create_task(clients.run(count))
        ends_at = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < ends_at:
            await asyncio.sleep(_LOOK_SECONDS)
            looks.append(await asyncio.to_thread(look, connection))
            done = looks[-1].settled - looks[0].settled
            if placing.done() and done >= orders and not looks[-1].open:
                break
        await placing
    return looks


def report(looks: list[Look], clients: Clients, orders: int) -> bool:
    """Prints the course and the rates; returns whether the goal is reached."""
    first, step = looks[0], max(1, len(looks) // 20)
    print("seconds   settled   open entries   oldest s   events not projected")
    for each in looks[1::step]:
        settled = each.settled - first.settled
        print(f"{each.at - first.at:>7.1f} {settled:>9} {each.open:>14} {each.oldest:>10.1f} {each.behind:>22}")
    placing, last = clients.ended_at - first.at, looks[-1]
    at_end = min(looks, key=lambda each: abs(each.at - clients.ended_at))
    settled, oldest = at_end.settled - first.settled, max(each.oldest for each in looks)
    placed_rate, settled_rate = orders / placing, (last.settled - first.settled) / (last.at - first.at)
    print(f"answers: {dict(clients.statuses)}")
    print(f"placed {orders} in {placing:.1f} s: {placed_rate:.0f}/s")
    print(f"settled meanwhile / placed: {settled / orders:.2f} (goal: 1)")
    print(f"all settled after {last.at - first.at:.1f} s: {settled_rate:.0f}/s")
    print(f"oldest open order {oldest:.1f} s (goal: {GOAL_SECONDS:g} s)")
    # Two looks: what was placed last is settled a moment after its answer.
    in_pace = last.at - clients.ended_at <= GOAL_SECONDS + 2 * _LOOK_SECONDS
    return in_pace and oldest <= GOAL_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="./justw bench settle")
    parser.add_argument("--clients", type=int, default=12, help="(default 12)")
    parser.add_argument("--orders", type=int, default=4_000, help="(default 4000)")
    chosen = parser.parse_args()
    running = RunningStack()
    users = make_users(running.url("gateway"), 3 * chosen.clients, 1)
    time.sleep(3)  # until the orders of the users are settled
    clients = Clients(running.stack.port("gateway"), users, chosen.orders)
    looks = uvloop.run(measure(running, clients, chosen.clients, chosen.orders))
    return 0 if report(looks, clients, chosen.orders) else 1


if __name__ == "__main__":
    sys.exit(main())
