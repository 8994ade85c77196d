"""Hypothesis: a deploy loses no request, whether the new version works or not.

Fault: a new version of each service under open-loop load. Observed: every answer. Recovery: a bad version is reverted
by Nomad. Controls (long): without shutdown_delay and drain the same load loses requests; without auto_revert a bad
version stays.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import register
from support.traffic.load import Load, Request

from stack.build.tools import ensure
from stack.cluster.nomad import Nomad
from stack.console import StackError

SERVICES = ("gateway", "order-service", "user-service")
A_SECOND = 1_000_000_000
PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]

pytestmark = pytest.mark.timeout(600)
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def nomad(running: RunningStack) -> Nomad:
    return Nomad(running.stack, running.clients, ensure(), {})


@pytest.fixture(scope="module", autouse=True)
def as_it_was(running: RunningStack, nomad: Nomad) -> Iterator[None]:
    """Begins on a healthy stack; afterwards each job is again as it was deployed."""
    running.wait_until_healthy()
    before = {name: running.clients.nomad.job.get_job(name) for name in SERVICES}
    yield
    for name, job in before.items():
        nomad.register(name, job)
    for name in before:
        nomad.wait_healthy(name)


@pytest.fixture(scope="module", autouse=True)
def patience(running: RunningStack, as_it_was: None) -> Iterator[None]:
    """Long deadlines, so that a slow machine causes no failure: this module looks for lost requests only."""
    before = {f"config/{name}": running.kv(f"config/{name}") for name in SERVICES}
    for key, text in before.items():
        running.put_kv(key, json.dumps(_patient(json.loads(text))))
    yield
    for key, text in before.items():
        running.put_kv(key, text)


def _patient(settings: dict[str, Any]) -> dict[str, Any]:
    sections = {name: _patient(value) for name, value in settings.items() if isinstance(value, dict)}
    return (
        settings
        | {name: 20.0 for name in ("deadline_seconds", "password_deadline_seconds") if name in settings}
        | sections
    )


@pytest.fixture
def arrivals(http: httpx.Client) -> Callable[[int], Request]:
    """Requests that place, read and list orders and read the own account; slow bodies keep a few always in flight."""
    users = [register(http) for _ in range(3)]
    known = [user.settled(user.place(PENNY).json()["id"])["id"] for user in users]

    def arrival(number: int) -> Request:
        index = number % len(users)
        user, kind = users[index], number // len(users) % 4
        if kind == 0:
            keyed = user.headers | {"Idempotency-Key": secrets.token_hex(16)}
            body = {"currency": "EUR", "lines": PENNY}
            return Request("POST", "/v1/orders", httpx.codes.CREATED, keyed, body, pause=1.5)
        path = (f"/v1/orders/{known[index]}", "/v1/orders?limit=5", "/v1/users/me")[kind - 1]
        return Request("GET", path, headers=user.headers)

    return arrival


def release(running: RunningStack, nomad: Nomad, name: str, change: Change = lambda _: None) -> None:
    """Registers a new version of a running job, with `change` applied to it."""
    job = copy.deepcopy(running.clients.nomad.job.get_job(name))
    job["Meta"] = {"release": secrets.token_hex(4)}
    change(job)
    nomad.register(name, job)


def loaded(running: RunningStack, arrivals: Callable[[int], Request], rate: float, deploy: Callable[[], None]) -> Load:
    """The load of requests that arrived before, during and after a deploy."""
    with Load(running.url("gateway"), rate, arrivals) as load:
        eventually("the load flows", lambda: len(load.answers) > rate, 30)
        deploy()
        enough = len(load.answers) + 2 * rate
        eventually("the load went on afterwards", lambda: len(load.answers) > enough, 60)
    return load


def test_a_rolling_deploy_of_everything_loses_no_request(
    running: RunningStack, nomad: Nomad, arrivals: Callable[[int], Request]
) -> None:
    before = {name: set(running.pids(name)) for name in SERVICES}

    def deploy() -> None:
        for name in SERVICES:
            release(running, nomad, name)
        for name in SERVICES:
            nomad.wait_healthy(name)

    load = loaded(running, arrivals, 15, deploy)
    print(load.report())
    assert [name for name in SERVICES if before[name] & set(running.pids(name))] == []
    assert len(load.answers) >= 100
    assert load.failures == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SERVICES)
def test_ten_thousand_requests_during_deploys_are_all_answered(
    running: RunningStack, nomad: Nomad, arrivals: Callable[[int], Request], name: str
) -> None:
    deploys = 0
    with Load(running.url("gateway"), 25, arrivals) as load:
        while len(load.answers) < 10_000:
            release(running, nomad, name)
            nomad.wait_healthy(name)
            deploys += 1
    print(f"{name}, {deploys} deploys: {load.report()}")
    assert load.failures == []


def _abrupt(job: dict[str, Any]) -> None:
    for group in job["TaskGroups"]:
        group["ShutdownDelay"] = 0
        for task in group["Tasks"]:
            task["KillSignal"], task["KillTimeout"] = "SIGKILL", 0


@pytest.mark.long
def test_without_delay_and_drain_the_same_load_loses_requests(
    running: RunningStack, nomad: Nomad, arrivals: Callable[[int], Request]
) -> None:
    release(running, nomad, "gateway", _abrupt)
    nomad.wait_healthy("gateway")

    def deploy() -> None:
        release(running, nomad, "gateway", _abrupt)
        nomad.wait_healthy("gateway")

    load = loaded(running, arrivals, 15, deploy)
    print(f"gateway, no drain: {load.report()}")
    assert load.failures


def _impatient(job: dict[str, Any]) -> None:
    for update in [job["Update"], *(group["Update"] for group in job["TaskGroups"])]:
        update["HealthyDeadline"] = 10 * A_SECOND


def _crashing(job: dict[str, Any]) -> None:
    _impatient(job)
    for group in job["TaskGroups"]:
        args = group["Tasks"][0]["Config"]["args"]
        args[args.index("-I") :] = ["-c", "raise SystemExit('this release is broken')"]


def _unreachable(job: dict[str, Any]) -> None:
    _impatient(job)
    for group in job["TaskGroups"]:
        group["Tasks"][0]["Env"]["BIND_ADDRESS"] = "127.0.0.1:0"


# Each bad release, and a part of the log that explains its failure.
BAD = {"user-service": (_crashing, "this release is broken"), "gateway": (_unreachable, "gateway: serving")}


def test_bad_releases_are_reverted_and_no_request_fails(
    running: RunningStack, nomad: Nomad, arrivals: Callable[[int], Request]
) -> None:
    """One release crashes, the other never becomes ready."""
    before = {name: set(running.pids(name)) for name in BAD}
    why: dict[str, str] = {}

    def deploy() -> None:
        for name, (change, _) in BAD.items():
            release(running, nomad, name, change)
        for name in BAD:
            with pytest.raises(StackError) as refused:
                nomad.wait_healthy(name)
            why[name] = refused.value.why

    load = loaded(running, arrivals, 15, deploy)
    print(f"bad releases: {load.report()}\n{why}")
    for name, (_, part_of_log) in BAD.items():
        assert part_of_log in why[name]
        eventually(f"{name} is as before", lambda: set(running.pids(name)) == before[name], 120)  # noqa: B023
        Nomad(running.stack, running.clients, ensure(), {}).wait_healthy(name)
    assert load.failures == []


def _crashing_for_good(job: dict[str, Any]) -> None:
    _crashing(job)
    for update in [job["Update"], *(group["Update"] for group in job["TaskGroups"])]:
        update["AutoRevert"] = False


@pytest.mark.long
def test_without_auto_revert_a_bad_release_stays(running: RunningStack, nomad: Nomad) -> None:
    """Control: the job keeps asking for the version that fails."""
    release(running, nomad, "user-service", _crashing_for_good)
    with pytest.raises(StackError) as refused:
        nomad.wait_healthy("user-service")
    print(refused.value.why)
    assert "rolling back" not in refused.value.why
    job = running.clients.nomad.job.get_job("user-service")
    assert "broken" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"][-1]
