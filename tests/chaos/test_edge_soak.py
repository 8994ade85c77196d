"""Hypothesis: a user who sends 20 requests a second notices nothing of ten minutes of everything that others can do.

Faults, one after the other and over again: a crowd with one token, resets, idle connections, slow bodies. Observed:
each answer of the user, the processes of every job, their memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import httpx
import psutil
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic import connections
from support.traffic.api_user import register
from support.traffic.connections import Address, Crowd
from support.traffic.load import Load, Request

from stack.cluster import nomad

SECONDS = 600
RATE = 20
LIVE = connections.head("GET", "/livez")
MIB = 2**20
# Processes of Postgres come and go with its connections.
JOBS = [name for name in nomad.names() if name != "postgres"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.usefixtures("healthy")]


def memory(running: RunningStack) -> dict[str, int]:
    """The bytes of each job that its processes own."""
    return {job: sum(psutil.Process(pid).memory_full_info().uss for pid in running.pids(job)) for job in nomad.names()}


def test_a_user_notices_nothing_of_ten_minutes_of_attacks(
    running: RunningStack, reading: Callable[[int], Request]
) -> None:
    edge = Address.of(running.url("gateway"))
    before = {job: running.pids(job) for job in JOBS}
    at_rest = memory(running)
    crowd = Crowd(edge, read_by_another_user(running))
    attacks = itertools.cycle([crowding(crowd), resetting(edge), idling(edge), trickling(edge)])
    ends_at = time.monotonic() + SECONDS
    with connections.many_open_files(), Load(running.url("gateway"), RATE, reading) as load:
        while time.monotonic() < ends_at:
            next(attacks)()
    print(load.report(), "crowd:", dict(crowd.outcomes))
    assert len(load.answers) > 0.9 * RATE * SECONDS
    assert load.failures == []
    assert {job: running.pids(job) for job in before} == before
    eventually("the memory is as before", lambda: grown(running, at_rest) == {}, 120)


def grown(running: RunningStack, at_rest: dict[str, int]) -> dict[str, str]:
    """The jobs that own noticeably more memory than at rest."""
    now = memory(running)
    found = {job: f"{at_rest[job] / MIB:.0f} -> {now[job] / MIB:.0f} MiB" for job in now}
    return {job: change for job, change in found.items() if now[job] > 1.3 * at_rest[job] + 64 * MIB}


def read_by_another_user(running: RunningStack) -> bytes:
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
        user = register(http)
        order = user.place().raise_for_status().json()["id"]
    return connections.head("GET", f"/v1/orders/{order}", user.headers)


def crowding(crowd: Crowd) -> Callable[[], None]:
    return lambda: crowd.run(200, 15)


def resetting(edge: Address) -> Callable[[], None]:
    return lambda: connections.reset(edge, LIVE, 3000)


def idling(edge: Address) -> Callable[[], None]:
    def attack() -> None:
        with connections.idle(edge, LIVE, 2000) as held:
            assert held == 2000
            time.sleep(10)

    return attack


def trickling(edge: Address) -> Callable[[], None]:
    def attack() -> None:
        begun = connections.head("POST", "/v1/users", length=5000) + b"{"
        with connections.unfinished_bodies(edge, begun, 300):
            time.sleep(22)

    return attack
