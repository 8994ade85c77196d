"""Hypothesis: no number of connections, and nothing that they do, takes the edge from everybody else.

Faults: crowds, resets, idle connections, slow and large bodies, many watches. Observed: the answer
of every other caller, the processes of the edge and their memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic import connections
from support.traffic.api_user import ApiUser
from support.traffic.connections import Address, Crowd
from support.traffic.load import Request
from support.traffic.performance_targets import Effort, efforts

MEMORY_LIMIT = 512 * 2**20
LIVE = connections.head("GET", "/livez")
FULL_BODY = 65_000
CROWDS = (16, 64)

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("healthy", "unharmed")]


@pytest.fixture
def edge(running: RunningStack) -> Address:
    return Address.of(running.url("gateway"))


@pytest.fixture
def unharmed(running: RunningStack) -> Iterator[None]:
    """Afterwards the same processes run in bounded memory, and everybody is answered."""
    before = {job: running.pids(job) for job in ("edge", "gateway")}
    yield
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
        assert [http.get("/livez").status_code for _ in range(10)] == [httpx.codes.OK] * 10
    assert {job: running.pids(job) for job in before} == before
    peak = max(_peak_memory(pid) for pid in before["edge"])
    print(f"peak of the edge {peak / 2**20:.0f} MiB")
    assert peak < MEMORY_LIMIT


def _peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def others(http: httpx.Client, request: Request, times: int) -> Counter[int]:
    """The statuses that another caller gets, one request after the other."""
    return Counter(http.get(request.path, headers=request.headers).status_code for _ in range(times))


# --- too many at once


@efforts(400, 1000)
def test_a_crowd_that_reads_one_order_is_answered_or_asked_to_come_back(
    edge: Address, reading: Callable[[int], Request], effort: Effort
) -> None:
    """Goodput stays above 0.2 of the peak, with `-m long` above 0.8. Rounds take turns: what else runs slows all."""
    request = reading(0)
    sizes = (*CROWDS, effort.times)
    crowds = {clients: Crowd(edge, connections.head("GET", request.path, request.headers)) for clients in sizes}
    with connections.many_open_files():
        for clients, crowd in [*crowds.items()] * 4:
            crowd.run(clients, 1.5)
    for clients, crowd in crowds.items():
        print(f"{clients} clients: {dict(crowd.outcomes)}")
        assert set(crowd.outcomes) <= {"200", "503 with a hint"}
    good = {clients: crowd.outcomes["200"] for clients, crowd in crowds.items()}
    assert good[effort.times] >= effort.bound(0.8, 0.2) * max(good.values())


@efforts(150, 190)
def test_watches_leave_the_places_of_calls_free(
    edge: Address, http: httpx.Client, user: ApiUser, reading: Callable[[int], Request], effort: Effort
) -> None:
    request = reading(0)
    watch = connections.head("GET", f"{request.path}/watch", request.headers)
    with connections.idle(edge, watch, effort.times) as held:
        assert held == effort.times
        assert others(http, request, 50) == {httpx.codes.OK: 50}


# --- connections that are no use


@efforts(1000, 3000)
def test_requests_that_are_followed_by_a_reset_harm_nobody_else(
    edge: Address, http: httpx.Client, effort: Effort, reading: Callable[[int], Request]
) -> None:
    connections.reset(edge, LIVE, effort.times)
    assert others(http, reading(0), 20) == {httpx.codes.OK: 20}


@efforts(1000, 3000)
def test_idle_connections_harm_nobody_else(
    edge: Address, http: httpx.Client, effort: Effort, reading: Callable[[int], Request]
) -> None:
    with connections.idle(edge, LIVE, effort.times) as held:
        assert held == effort.times
        assert others(http, reading(0), 50) == {httpx.codes.OK: 50}


@efforts(300, 1000)
def test_slow_bodies_never_reach_a_gateway_and_end_as_a_problem(
    edge: Address, http: httpx.Client, effort: Effort, reading: Callable[[int], Request]
) -> None:
    request, begun = reading(0), connections.head("POST", "/v1/users", length=5000) + b"{"
    with connections.unfinished_bodies(edge, begun, effort.times) as held:
        began = time.monotonic()
        assert others(http, request, 100) == {httpx.codes.OK: 100}
        answers = [connection.recv(4096).decode() for connection in held[:50]]
        print(f"{effort.times} slow bodies ended after {time.monotonic() - began:.0f} s")
    assert {answer.split()[1] for answer in answers} == {"408"}
    assert all('"/problems/request-timeout"' in answer for answer in answers)


@efforts(500, 3800)
def test_large_bodies_that_are_never_complete_stay_within_the_memory_of_the_edge(
    edge: Address, http: httpx.Client, effort: Effort, reading: Callable[[int], Request]
) -> None:
    request, begun = reading(0), connections.head("POST", "/v1/users", length=FULL_BODY)
    with connections.unfinished_bodies(edge, begun + b" " * (FULL_BODY - 1000), effort.times) as held:
        statuses = others(http, request, 20)
        assert set(statuses) <= {httpx.codes.OK, *([httpx.codes.SERVICE_UNAVAILABLE] if effort.full else [])}
        for connection in held:
            connection.settimeout(60)
            assert connection.recv(12) in {b"HTTP/1.1 408", b"HTTP/1.1 503"}
    eventually("everybody is answered", lambda: set(others(http, request, 10)) == {httpx.codes.OK}, 30)
