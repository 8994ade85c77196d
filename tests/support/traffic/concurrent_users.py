"""Many people's work at once while instances are being killed, remembered so that it can be counted afterwards."""

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
from support.traffic.api_user import Person

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
GOLD = [{"sku": "gold", "quantity": 1, "unit_price": 100_001}]
LATER = {httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS,
         httpx.codes.BAD_GATEWAY}  # fmt: skip


def insist(call: Callable[[], httpx.Response], seconds: float = 90) -> httpx.Response:
    """The first answer that is one: whoever is refused for now, or cut off, asks again."""
    until = time.monotonic() + seconds
    while True:
        try:
            reply = call()
        except httpx.TransportError as error:
            assert time.monotonic() < until, f"nobody answers: {error!r}"
        else:
            if reply.status_code not in LATER:
                return reply
            assert time.monotonic() < until, reply.text
        time.sleep(random.uniform(0.05, 0.3))


class Crowd:
    """Orders under keys, each sent several times at once; `answers` has what every single sender was told."""

    def __init__(self, person: Person, senders: int) -> None:
        self._person = person
        self._pool = ThreadPoolExecutor(senders)
        self.answers: dict[str, list[Future[tuple[int, str, dict[str, Any]]]]] = {}

    def send(self, key: str, times: int, *, with_key: bool = True) -> None:
        """Place one penny's order under a key, so many times at once."""
        copies = [self._pool.submit(self._place, key if with_key else None) for _ in range(times)]
        self.answers[key] = copies

    def wait(self) -> None:
        """Until everybody was answered; raises what any of them raised."""
        for copies in self.answers.values():
            for copy in copies:
                copy.result()
        self._pool.shutdown()

    def different(self) -> dict[str, set[str]]:
        """The keys whose senders were told different things."""
        told = {key: {repr(copy.result()) for copy in copies} for key, copies in self.answers.items()}
        return {key: answers for key, answers in told.items() if len(answers) > 1}

    def _place(self, key: str | None) -> tuple[int, str, dict[str, Any]]:
        reply = insist(lambda: self._person.place(PENNY, key=key))
        body = reply.json()
        return reply.status_code, reply.headers.get("location", ""), body


class Customers:
    """One user's orders of pennies and of gold, which is beyond the credit; some are cancelled. Until told to stop.

    `placed` has every order that was acknowledged, and how it may end.
    """

    def __init__(self, person: Person, count: int) -> None:
        self.person = person
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self.placed: dict[str, set[str]] = {}
        self._working = [self._pool.submit(self._work, number) for number in range(count)]

    def stop(self) -> None:
        """Return when the last call was answered; raises what any customer raised."""
        self._stopping.set()
        for work in self._working:
            work.result()
        self._pool.shutdown()

    def _work(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            lines, end = random.choices([(PENNY, "confirmed"), (GOLD, "rejected")], [4, 1])[0]
            placed = insist(lambda: self.person.place(lines, key=f"{number}-{turn}"))  # noqa: B023
            assert placed.status_code == httpx.codes.CREATED, placed.text
            order_id = placed.json()["id"]
            self.placed[order_id] = {end}
            if random.random() < 0.4:
                self._cancel(order_id)

    def _cancel(self, order_id: str) -> None:
        reply = insist(lambda: self.person.cancel(order_id))
        if reply.status_code == httpx.codes.OK:
            self.placed[order_id] = {"cancelled"}
        else:
            # It was rejected before, or an attempt whose answer was lost has cancelled it.
            assert reply.status_code == httpx.codes.CONFLICT, reply.text
            self.placed[order_id] = (self.placed[order_id] | {"cancelled"}) - {"confirmed"}


@contextmanager
def killing(running: RunningStack, job: str, group: str | None = None, every: float = 1.0) -> Iterator[list[int]]:
    """Kill an instance of a job with SIGKILL every so many seconds; yields the process ids that were."""
    stopping, killed = threading.Event(), []

    def kill() -> None:
        while not stopping.wait(random.uniform(0.5, 1.5) * every):
            if one := kill_one(running, job, group):
                killed.append(one)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join(30)


def kill_one(running: RunningStack, job: str, group: str | None = None) -> int | None:
    """Kill a random instance; None when none runs, or it ended by itself meanwhile."""
    pids = running.pids(job, group)
    if not pids:
        return None
    victim = random.choice(pids)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


def all_settled(person: Person, orders: list[str], seconds: float) -> dict[str, str]:
    """The status of each order once none is pending; one look at all is one page after the other."""
    wanted = set(orders)

    def look() -> dict[str, str] | None:
        found = {order["id"]: order["status"] for order in every_order(person)}
        missing = wanted - found.keys()
        pending = [order_id for order_id in wanted & found.keys() if found[order_id] == "pending"]
        return found if not missing and not pending else None

    return eventually(f"{len(wanted)} orders are settled", look, seconds, every=0.5)


def every_order(person: Person) -> Iterator[dict[str, Any]]:
    """All orders of somebody, page after page."""
    cursor = ""
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = insist(lambda: person.get("/v1/orders", params={"limit": "100", **more})).json()  # noqa: B023
        yield from page["items"]
        cursor = page.get("next_cursor") or ""
        if not cursor:
            return
