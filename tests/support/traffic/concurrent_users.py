"""Concurrent users whose requests and replies are recorded, and the killing of instances under their load."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
GOLD = [{"sku": "gold", "quantity": 1, "unit_price": 100_001}]
RETRYABLE = {httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS,
         httpx.codes.BAD_GATEWAY}  # fmt: skip


def retry_until_answered(call: Callable[[], httpx.Response], seconds: float = 90) -> httpx.Response:
    """Calls until a reply is final: a connection error or a retryable status is tried again."""
    until = time.monotonic() + seconds
    while True:
        try:
            reply = call()
        except httpx.TransportError as error:
            assert time.monotonic() < until, f"no reply: {error!r}"
        else:
            if reply.status_code not in RETRYABLE:
                return reply
            assert time.monotonic() < until, reply.text
        time.sleep(random.uniform(0.05, 0.3))


class ConcurrentUsers:
    """Sends each order several times at once under its key; `answers` has the reply to every single request."""

    def __init__(self, user: ApiUser, senders: int) -> None:
        self._person = user
        self._senders = senders
        self._pool = ThreadPoolExecutor(senders)
        self.answers: dict[str, list[Future[tuple[int, str, dict[str, Any]]]]] = {}

    def send(self, key: str, times: int, *, with_key: bool = True) -> None:
        """Places an order of one penny under a key, `times` times at once."""
        copies = [self._pool.submit(self._place, key if with_key else None) for _ in range(times)]
        self.answers[key] = copies

    def wait_for_a_place(self) -> None:
        """Returns once fewer than twice as many requests as senders have no reply."""
        sent = [copy for copies in self.answers.values() for copy in copies]
        for copy in sent[: -2 * self._senders]:
            copy.result()

    def wait(self) -> None:
        """Returns once every request has a reply; raises what any of them raised."""
        for copies in self.answers.values():
            for copy in copies:
                copy.result()
        self._pool.shutdown()

    def unequal(self) -> dict[str, set[str]]:
        """The keys with unequal replies."""
        replies = {key: {repr(copy.result()) for copy in copies} for key, copies in self.answers.items()}
        return {key: answers for key, answers in replies.items() if len(answers) > 1}

    def _place(self, key: str | None) -> tuple[int, str, dict[str, Any]]:
        reply = retry_until_answered(lambda: self._person.place(PENNY, key=key))
        body = reply.json()
        return reply.status_code, reply.headers.get("location", ""), body


class Customers:
    """Places orders of pennies and of gold, which exceeds the credit, and cancels some, until `stop`.

    `placed` has every acknowledged order with the states in which it may end.
    """

    def __init__(self, user: ApiUser, count: int) -> None:
        self.user = user
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self.placed: dict[str, set[str]] = {}
        self._working = [self._pool.submit(self._work, number) for number in range(count)]

    def stop(self) -> None:
        """Returns after the last reply; raises what any customer raised."""
        self._stopping.set()
        for work in self._working:
            work.result()
        self._pool.shutdown()

    def _work(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            lines, end = random.choices([(PENNY, "confirmed"), (GOLD, "rejected")], [4, 1])[0]
            placed = retry_until_answered(lambda: self.user.place(lines, key=f"{number}-{turn}"))  # noqa: B023
            assert placed.status_code == httpx.codes.CREATED, placed.text
            order_id = placed.json()["id"]
            self.placed[order_id] = {end}
            if random.random() < 0.4:
                self._cancel(order_id)

    def _cancel(self, order_id: str) -> None:
        reply = retry_until_answered(lambda: self.user.cancel(order_id))
        if reply.status_code == httpx.codes.OK:
            self.placed[order_id] = {"cancelled"}
        else:
            # It was rejected before, or an attempt without a reply has cancelled it.
            assert reply.status_code == httpx.codes.CONFLICT, reply.text
            self.placed[order_id] = (self.placed[order_id] | {"cancelled"}) - {"confirmed"}


@contextmanager
def killing(running: RunningStack, job: str, group: str | None = None, every: float = 1.0) -> Iterator[list[int]]:
    """Kills an instance of a job with SIGKILL about every `every` seconds; yields the list of killed processes."""
    stopping, killed = threading.Event(), []

    def kill() -> None:
        while not stopping.wait(random.uniform(0.5, 1.5) * every):
            if pid := kill_one(running, job, group):
                killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join(30)


def kill_one(running: RunningStack, job: str, group: str | None = None) -> int | None:
    """Kills a random instance; returns its process id, or None if none ran."""
    pids = running.pids(job, group)
    if not pids:
        return None
    victim = random.choice(pids)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


def wait_all_settled(user: ApiUser, orders: list[str], seconds: float) -> dict[str, str]:
    """Waits until none of the orders is pending; returns the status of each."""
    wanted = set(orders)

    def look() -> dict[str, str] | None:
        found = {order["id"]: order["status"] for order in every_order(user)}
        missing = wanted - found.keys()
        pending = [order_id for order_id in wanted & found.keys() if found[order_id] == "pending"]
        return found if not missing and not pending else None

    return eventually(f"{len(wanted)} orders are settled", look, seconds, every=0.5)


def every_order(user: ApiUser) -> Iterator[dict[str, Any]]:
    """All orders of a user, page by page."""
    cursor = ""
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = retry_until_answered(lambda: user.get("/v1/orders", params={"limit": "100", **more})).json()  # noqa: B023
        yield from page["items"]
        cursor = page.get("next_cursor") or ""
        if not cursor:
            return
