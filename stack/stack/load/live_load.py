"""`load RATE`: sends a realistic mix to the running stack, prints a line each second, ends with a summary."""

from __future__ import annotations

import asyncio
import math
import secrets
import signal
import time

import httpx

from stack.cluster import agents, smoke_test
from stack.config import Stack
from stack.console import StackError, say, step
from stack.load.load_figures import HEADER
from stack.load.mix import Mix, User
from stack.load.open_loop import OpenLoop

MOST_PER_SECOND = 2_000
# The edge gives each user a share of 30 requests a second. A few times that many users send less than their share.
_PER_USER, _FEWEST_USERS, _MOST_USERS = 10.0, 4, 100
_HEADER_LINES = 20
_PATIENCE_SECONDS = 30.0


def load(stack: Stack, rate: float, seconds: float | None) -> None:
    """Sends `rate` requests a second until Ctrl-C, or for `seconds`."""
    if not 0 < rate <= MOST_PER_SECOND:
        raise StackError(
            f"{rate:g} requests a second cannot be sent",
            f"the rate is above 0 and at most {MOST_PER_SECOND}",
            "./justw load 20",
        )
    if seconds is not None and not 0 < seconds < math.inf:
        raise StackError(f"a load cannot last {seconds:g} seconds", "the time is above 0", "./justw load 20 --for 60")
    agents.require_running(stack)
    smoke_test.ready(stack)
    users = _registered(stack.url("gateway"), _number_of_users(rate))
    asyncio.run(_run(OpenLoop(stack.url("gateway"), Mix(users), rate), seconds))


def _number_of_users(rate: float) -> int:
    return min(_MOST_USERS, max(_FEWEST_USERS, math.ceil(rate / _PER_USER)))


def _registered(url: str, count: int) -> list[User]:
    """Registers and signs in users, one after the other, because passwords are hashed slowly on purpose."""
    with step(f"registering {count} users") as current, httpx.Client(base_url=url, timeout=15, trust_env=False) as http:
        users = []
        for number in range(count):
            current.detail = f"{number} registered"
            users.append(_register(http))
    return users


def _register(http: httpx.Client) -> User:
    user = User(f"load-{secrets.token_hex(6)}@waypost.example", secrets.token_urlsafe(16))
    _post(http, "/v1/users", {"email": user.email, "name": "Load", "password": user.password})
    user.signed_in(_post(http, "/v1/sessions", {"email": user.email, "password": user.password}).json())
    return user


def _post(http: httpx.Client, path: str, body: dict[str, str]) -> httpx.Response:
    """Posts again while the system is busy; raises StackError for any other answer than 201."""
    ends_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        reply = http.post(path, json=body)
        if reply.status_code == httpx.codes.CREATED:
            return reply
        if reply.status_code not in {429, 503, 504} or time.monotonic() > ends_at:
            raise StackError(f"POST {path} answered {reply.status_code}", reply.text, "./justw status")
        time.sleep(0.5)


async def _run(sending: OpenLoop, seconds: float | None) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    if seconds is not None:
        loop.call_later(seconds, stopping.set)
    began, cpu, printed = time.monotonic(), time.process_time(), 0
    last = began

    def report() -> None:
        nonlocal last, printed
        now = time.monotonic()
        if printed % _HEADER_LINES == 0:
            say(HEADER)
        say(sending.take_second().line(now - began, now - last, sending.waiting))
        last, printed = now, printed + 1

    await sending.run(stopping, report)
    elapsed = time.monotonic() - began
    say()
    say("\n".join(sending.summary.lines(elapsed, (time.process_time() - cpu) / elapsed)))
