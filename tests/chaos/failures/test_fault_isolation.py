"""Hypothesis: what one part suffers is no loss to those who do not need it, and nothing acknowledged is lost.

Fault: ordered by `./justw chaos` under open-loop load. Observed: every answer. Recovery: by itself, without a restart.
Control: that the fault is real is seen on the part itself, or on a call that needs it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest
from support.chaos_command import Chaos, timed
from support.database_access import tables, value
from support.kv_settings import turned
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person
from support.traffic.load import Answer, Load, Request
from support.traffic.targets import Effort, efforts

from stack.chaos import instances
from stack.cluster.clients import Clients
from stack.machine import processes

LATER = {httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}
DEADLINE_SECONDS = 3.0
# What the goal allows on top, and what a starved machine may add to any answer, that of the caller included.
LATE_SECONDS, STARVED_SECONDS = 0.05, 15.0
KILL_TIMEOUT_SECONDS = 20.0
RATE = 8
LEFT_OUT = "instance left out"
PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("steady")]


def _sent(load: Load, method: str) -> list[Answer]:
    return [answer for answer in load.answers if answer.request.method == method]


def _refused_in_time(answers: list[Answer], slack: float) -> float:
    """What failed was told so, within the deadline; the seconds that the last answer took."""
    assert {answer.status for answer in answers if answer.failed} <= LATER
    longest = max(answer.seconds for answer in answers)
    assert longest < DEADLINE_SECONDS + slack
    return longest


def _writes_again(person: Person) -> float:
    """Seconds until an order can be placed."""
    began = time.monotonic()
    eventually("orders can be placed again", lambda: timed(lambda: person.place(PENNY))[0] == httpx.codes.CREATED, 30)
    return time.monotonic() - began


def _takes_connections(running: RunningStack) -> bool:
    try:
        return value(running, "order_service", "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


def _none_is_lost(person: Person, answers: list[Answer]) -> int:
    """How many of the orders were acknowledged: each of them is confirmed, listed, and paid once."""
    acknowledged = {answer.headers["location"].rpartition("/")[2] for answer in answers if not answer.failed}
    assert {person.settled(order, 60)["status"] for order in acknowledged} == {"confirmed"}

    def agrees() -> bool:
        listed = _listed(person)
        return acknowledged <= set(listed) and person.credit() == 100_000 - len(listed)

    eventually("every acknowledged order is listed, and as many pennies are held as there are orders", agrees, 30)
    assert len(acknowledged) == sum(not answer.failed for answer in answers)
    return len(acknowledged)


def _listed(person: Person) -> list[str]:
    """Every order of somebody, page by page."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = person.get("/v1/orders", params={"limit": 100} | ({"cursor": cursor} if cursor else {})).json()
        found += [order["id"] for order in page["items"]]
        cursor = page["next_cursor"]
    return found


@pytest.mark.parametrize("job", ["order-service", "user-service"])
@efforts(6, 30)
def test_one_stopped_instance_of_two_delays_few_and_nobody_beyond_the_deadline(
    running: RunningStack, person: Person, reading: Callable[[int], Request], effort: Effort, job: str
) -> None:
    me = Request("GET", "/v1/users/me", headers=person.headers)
    with Load(running.url("gateway"), 20, reading if job == "order-service" else lambda _: me) as load:
        eventually("the load flows", lambda: len(load.answers) > 40, 30)
        with _stopped(running, job) as began:
            time.sleep(effort.amount)
        running.steady()
    longest = _refused_in_time(load.answers, effort.bound(LATE_SECONDS, STARVED_SECONDS))
    share = len(load.failures) / len(load.answers)
    seen = [min(times, default=float("inf")) - began for times in running.logged("gateway", began, LEFT_OUT)]
    print(
        f"one of two instances of {job} stopped for {effort.amount:g} s: left out after {max(seen):.2f} s by "
        f"{len(seen)} gateways, {100 * share:.2f} % failed, the longest answer took {longest:.2f} s; {load.report()}"
    )
    assert max(seen) <= effort.bound(1.0, 10.0)
    assert share <= effort.bound(0.01, 0.2)


@contextmanager
def _stopped(running: RunningStack, job: str = "order-service") -> Iterator[float]:
    """One instance, since the moment that is yielded: a command would take its time."""
    victim = running.pids(job, "api")[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        yield time.time()
    finally:
        os.kill(victim, signal.SIGCONT)


def test_a_stopped_instance_that_is_not_left_out_makes_many_wait(
    running: RunningStack, reading: Callable[[int], Request]
) -> None:
    """Negative control: the same fault, without the right to leave anybody out; before Consul finds it after 5 s."""
    balancing = {"left_out_share": 0.0, "left_out_seconds": 15.0}
    with (
        turned(running, "gateway", {"orders": {"balancing": balancing}}),
        Load(running.url("gateway"), 12, reading) as load,
    ):
        eventually("the load flows", lambda: len(load.answers) > 24, 30)
        with _stopped(running) as began:
            eventually("it has lasted", lambda: time.time() > began + 6, 10)
    # Those that have waited for the stopped one, before the other was asked.
    late = sum(answer.seconds > 0.9 for answer in load.arrived(began + 1, began + 5))
    running.steady()
    print(f"{late} late answers in the 4 s before Consul finds out, where none is left out")
    assert late >= 3


@efforts(2, 10)
def test_a_killed_database_loses_no_acknowledged_order(
    running: RunningStack, chaos: Chaos, person: Person, placing: Callable[[int], Request], effort: Effort
) -> None:
    away, back = [], []
    with Load(running.url("gateway"), RATE, placing) as load:
        for _ in range(effort.times):
            killed = time.monotonic()
            chaos.order("database kill")
            eventually("Postgres takes connections", lambda: _takes_connections(running), 60)
            away.append(time.monotonic() - killed)
            back.append(_writes_again(person))
            running.steady()
    _refused_in_time(load.answers, effort.bound(LATE_SECONDS, STARVED_SECONDS))
    acknowledged = _none_is_lost(person, _sent(load, "POST"))
    print(
        f"{effort.times} kills of Postgres, {acknowledged} orders acknowledged, 0 lost; away for {max(away):.1f} s, "
        f"writes were back {max(back):.1f} s later, at most"
    )
    assert acknowledged > effort.times
    assert max(back) <= effort.bound(2.0, 15.0)


def test_a_database_that_says_done_before_it_is_loses_orders(
    running: RunningStack, chaos: Chaos, person: Person
) -> None:
    """Negative control: the same kill, with commits that do not wait for the disk."""
    with _hasty_commits(running):
        placed = [person.place(PENNY).raise_for_status().json()["id"] for _ in range(20)]
        chaos.order("database kill")
        eventually("Postgres takes connections", lambda: _takes_connections(running), 60)
        _writes_again(person)
        running.steady()
        lost = set(placed) - set(_listed(person))
    print(f"without waiting for the disk, {len(lost)} of {len(placed)} acknowledged orders are lost")
    assert lost


@contextmanager
def _hasty_commits(running: RunningStack) -> Iterator[None]:
    """A commit is acknowledged ten seconds before it is written; in all databases alike, or they would disagree."""
    hasty = {"synchronous_commit": "off", "wal_writer_delay": "'10s'", "wal_writer_flush_after": "'1GB'"}
    with tables(running, "order_service") as postgres:
        for name, wanted in hasty.items():
            postgres.execute(f"ALTER SYSTEM SET {name} = {wanted}".encode())
        postgres.execute("SELECT pg_reload_conf()")
    try:
        eventually("it is hasty", lambda: value(running, "order_service", "SHOW synchronous_commit") == "off")
        yield
    finally:
        with tables(running, "order_service") as postgres:
            for name in hasty:
                postgres.execute(f"ALTER SYSTEM RESET {name}".encode())
            postgres.execute("SELECT pg_reload_conf()")


@efforts(4, 60)
def test_a_full_disk_refuses_orders_answers_reads_and_heals_without_a_restart(
    running: RunningStack, chaos: Chaos, person: Person, placing: Callable[[int], Request], effort: Effort
) -> None:
    before = instances.process_ids(running.stack, Clients(running.stack), "postgres"), running.pids("order-service")
    with Load(running.url("gateway"), RATE, placing) as load:
        chaos.order("disk full", 60 + effort.amount)
        full = time.time()
        time.sleep(effort.amount)
        over = time.time()
        chaos.off()
        back = _writes_again(person)
    during = [answer for answer in _sent(load, "POST") if full < answer.at - answer.seconds and answer.at < over]
    assert httpx.codes.SERVICE_UNAVAILABLE in {answer.status for answer in during} <= ({503} if effort.full else LATER)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in during if answer.status == 503)
    reads = _sent(load, "GET")
    assert {answer.status for answer in reads if answer.failed} <= LATER
    after = instances.process_ids(running.stack, Clients(running.stack), "postgres"), running.pids("order-service")
    assert after == before
    _none_is_lost(person, _sent(load, "POST"))
    print(f"disk full for {effort.amount:g} s: {len(during)} orders refused, writes back in {back:.1f} s; {load.report()}")
    assert sum(answer.failed for answer in reads) <= effort.bound(0.0, 0.1) * len(reads)
    assert back <= effort.bound(2.0, 15.0)


@efforts(5, 60)
def test_without_consul_no_request_fails(
    running: RunningStack, chaos: Chaos, placing: Callable[[int], Request], effort: Effort
) -> None:
    with Load(running.url("gateway"), RATE, placing) as load:
        chaos.order("consul down", effort.amount)
        assert timed(lambda: httpx.get(running.url("consul"), timeout=2))[0] == 0
        chaos.over(effort.amount + 60)
        running.steady()
    assert load.failures == [], load.report()
    print(f"Consul down for {effort.amount:g} s: {load.report()}")


@efforts(5, 300)
def test_while_vault_is_sealed_no_order_fails(
    running: RunningStack, chaos: Chaos, person: Person, placing: Callable[[int], Request], effort: Effort
) -> None:
    with Load(running.url("gateway"), RATE, placing) as load:
        chaos.order("vault sealed", effort.amount)
        session = {"email": person.email, "password": person.password}
        assert person.http.post("/v1/sessions", json=session).status_code == httpx.codes.SERVICE_UNAVAILABLE
        chaos.over(effort.amount + 60)
    assert load.failures == [], load.report()
    print(f"OpenBao sealed for {effort.amount:g} s: {load.report()}")


@efforts(5, 60)
def test_hanging_telemetry_costs_no_request_and_holds_up_no_exit(
    running: RunningStack, chaos: Chaos, placing: Callable[[int], Request], effort: Effort
) -> None:
    if not running.instances("telemetry"):
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    # Before and after, so that what else the machine does hits both alike.
    good = _throughput(running, placing, effort.amount / 2)
    with _hanging(running, chaos, effort.amount + 60):
        hanging = _throughput(running, placing, effort.amount)
        ended = _seconds_to_end(running.pids("order-service", "api")[0])
    running.steady()
    good = (good + _throughput(running, placing, effort.amount / 2)) / 2
    print(f"telemetry hanging: throughput {hanging / good:.3f} x, exit after {ended:.1f} s")
    assert hanging >= effort.bound(0.97, 0.2) * good


@contextmanager
def _hanging(running: RunningStack, chaos: Chaos, seconds: float) -> Iterator[None]:
    chaos.order("telemetry hanging", seconds)
    assert timed(lambda: httpx.get(running.url("telemetry"), timeout=2))[0] == 0
    yield
    chaos.off()


def _seconds_to_end(pid: int) -> float:
    """Of a process that is told to; more than `kill_timeout` are a failure."""
    os.kill(pid, signal.SIGTERM)
    told = time.monotonic()
    eventually("it has ended", lambda: processes.start_time(pid) is None, KILL_TIMEOUT_SECONDS)
    return time.monotonic() - told


def _throughput(running: RunningStack, arrival: Callable[[int], Request], seconds: float) -> float:
    """Good answers a second to one caller who asks again as soon as it is answered; none may fail."""
    good, until = 0, time.monotonic() + seconds
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
        while time.monotonic() < until:
            request = arrival(good)
            reply = http.request(request.method, request.path, headers=request.headers, json=request.json)
            assert reply.status_code == request.expected, reply.text
            good += 1
    return good / seconds
