"""`./justw chaos`: each fault is felt, ends when it is called off and by itself, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.chaos_command import Chaos, quickest, timed
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person

from stack.chaos import traffic_redirect
from stack.cluster import agents
from stack.config import ROOT
from stack.console import StackError
from stack.machine import processes

REFUSED = {httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}
# Deadline of a call about orders, and what a slow machine adds.
ANSWERED_SECONDS = 3.0 + 3.0

Read = Callable[[], httpx.Response]


@pytest.fixture
def read(person: Person) -> Read:
    """Reads an order that was placed before anything broke."""
    placed = eventually("an order can be placed", lambda: _placed(person), 30)
    return lambda: person.get(f"/v1/orders/{placed}")


def _is_refused(call: Read) -> float:
    """Seconds of the first call that is answered `later`: a caller may follow Consul a moment after the fault began."""
    return eventually("a call is refused", lambda: _seconds_if_refused(*timed(call)), 20)


def _seconds_if_refused(status: int, seconds: float) -> float | None:
    return seconds if status in REFUSED else None


def _placed(person: Person) -> str | None:
    reply = person.place()
    return str(reply.json()["id"]) if reply.status_code == httpx.codes.CREATED else None


def _works(call: Read, status: int = httpx.codes.OK) -> None:
    eventually("calls pass again", lambda: timed(call)[0] == status, 30)


def test_the_command_orders_lists_and_ends_a_fault(running: RunningStack, chaos: Chaos) -> None:
    said = _type(running, "latency", "user-service", "5", "--for", "60")
    assert re.search(r"until \d\d:\d\d:\d\d \(60 s\); earlier with ./justw chaos off", said)
    listed = _type(running, "list")
    assert "half-open SERVICE" in listed
    assert "latency user-service 5 " in listed
    assert _type(running, "off") == "latency user-service 5: undone\n"
    assert chaos.active() == []


def _type(running: RunningStack, *words: str) -> str:
    env = os.environ | {"WAYPOST_STACK": running.stack.name, "WAYPOST_SLOT": str(running.stack.slot)}
    command_line = [sys.executable, "-m", "stack", "chaos", *words]
    return subprocess.run(command_line, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("latency artifacts 5", "its callers know its port"),
        ("latency nobody 5", "Consul knows none"),
        ("pause nobody", "no job declares it"),
        ("kill gateway --for 5", "it is over at once"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(chaos: Chaos, words: str, why: str) -> None:
    with pytest.raises(StackError, match=why):
        chaos.order(words)
    assert chaos.active() == []


@pytest.mark.parametrize("service", ["order-service", "gateway"])
def test_latency_makes_every_answer_late(chaos: Chaos, read: Read, service: str) -> None:
    eventually("answers are quick", lambda: quickest(read) < 0.5, 20)
    chaos.order(f"latency {service} 500", 60)
    eventually("every answer is late", lambda: quickest(read) >= 0.5, 20)
    chaos.off()
    eventually("answers are quick again", lambda: quickest(read) < 0.5, 20)


def test_errors_reset_what_is_sent(chaos: Chaos, read: Read) -> None:
    chaos.order("errors order-service 100", 60)
    _is_refused(read)
    chaos.off()
    _works(read)


def test_drop_lets_a_caller_wait_and_no_longer_than_its_deadline(chaos: Chaos, read: Read) -> None:
    chaos.order("drop order-service", 60)
    assert _is_refused(read) < ANSWERED_SECONDS
    chaos.off()
    _works(read)


def test_a_thin_line_makes_answers_slow(chaos: Chaos, read: Read) -> None:
    eventually("answers are quick", lambda: quickest(read) < 0.5, 20)
    chaos.order("slow order-service 200", 60)
    eventually("every answer is late", lambda: quickest(read) >= 0.5, 20)
    chaos.off()
    eventually("answers are quick again", lambda: quickest(read) < 0.5, 20)


def test_half_open_connections_are_not_told_and_new_ones_work(chaos: Chaos, read: Read) -> None:
    chaos.order("half-open order-service", 60)
    assert _is_refused(read) < ANSWERED_SECONDS
    chaos.off()
    _works(read)


def test_a_paused_service_is_there_and_silent(chaos: Chaos, running: RunningStack, person: Person) -> None:
    before = running.pids("user-service")
    chaos.order("pause user-service all", 60)
    assert _is_refused(lambda: person.get("/v1/users/me")) < ANSWERED_SECONDS + 3.0
    chaos.off()
    _works(lambda: person.get("/v1/users/me"))
    assert running.pids("user-service") == before


@pytest.mark.parametrize("service", ["user-service", "order-service-worker"])
def test_a_killed_instance_is_started_again(chaos: Chaos, running: RunningStack, service: str) -> None:
    running.steady()
    wanted = len(running.instances(service))
    said = chaos.order(f"kill {service}")
    victim = int(re.findall(r"process (\d+) is killed", said)[0])
    eventually("it is dead", lambda: processes.start_time(victim) is None)
    eventually("all instances pass their checks", lambda: len(running.instances(service)) == wanted, 30)


def test_a_database_that_is_there_and_silent_fails_its_check(chaos: Chaos, running: RunningStack, read: Read) -> None:
    eventually("the check passes", lambda: running.instances("postgres"), 15)
    chaos.order("pause postgres", 60)
    eventually("the check fails", lambda: not running.instances("postgres"), 15)
    chaos.off()
    eventually("the check passes", lambda: running.instances("postgres"), 15)
    _works(read)


def test_a_killed_database_is_started_again(chaos: Chaos, person: Person, read: Read) -> None:
    said = chaos.order("database kill")
    victim = int(re.findall(r"process (\d+) is killed", said)[0])
    eventually("it is dead", lambda: processes.start_time(victim) is None)
    _works(read)
    _works(person.place, httpx.codes.CREATED)


def test_a_full_disk_refuses_what_is_new_and_needs_no_restart(chaos: Chaos, person: Person, read: Read) -> None:
    chaos.order("disk full", 60)
    assert timed(person.place)[0] == httpx.codes.SERVICE_UNAVAILABLE
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    _works(person.place, httpx.codes.CREATED)


@pytest.mark.parametrize("agent", ["consul", "nomad"])
def test_an_agent_that_is_down_comes_back(chaos: Chaos, running: RunningStack, agent: str, read: Read) -> None:
    chaos.order(f"{agent} down", 60)
    assert timed(lambda: httpx.get(running.url(agent), timeout=2))[0] == 0
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    assert agents.daemon(running.stack, agent).pid() is not None
    _works(lambda: httpx.get(running.url(agent) + "/v1/status/leader", timeout=2))


def test_a_sealed_vault_refuses_everything_until_it_is_unsealed(
    chaos: Chaos, running: RunningStack, read: Read
) -> None:
    def healthy() -> httpx.Response:
        return httpx.get(running.url("vault") + "/v1/sys/health", timeout=2)

    chaos.order("vault sealed", 60)
    assert healthy().json()["sealed"] is True
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    assert healthy().json()["sealed"] is False


def test_hanging_telemetry_takes_connections_and_never_answers(chaos: Chaos, running: RunningStack, read: Read) -> None:
    if not running.instances("telemetry"):
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    look = lambda: httpx.get(running.url("telemetry"), timeout=2)  # noqa: E731
    eventually("it answers", lambda: timed(look)[0] == httpx.codes.OK, 10)
    chaos.order("telemetry hanging", 60)
    assert timed(look)[0] == 0
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    _works(look)


def test_faults_end_by_themselves_and_leave_nothing_behind(chaos: Chaos, running: RunningStack, read: Read) -> None:
    for words in ("latency user-service 5", "drop order-service", "pause telemetry", "disk full", "vault sealed"):
        chaos.order(words, 3)
    chaos.over(60)
    assert _traces(running) == []
    running.steady()
    _works(read)


@pytest.mark.parametrize("words", ["drop order-service", "pause user-service all"])
def test_what_a_killed_keeper_has_left_is_undone_by_off(
    chaos: Chaos, running: RunningStack, read: Read, words: str
) -> None:
    chaos.order(words, 600)
    keeper = chaos.keeper()
    os.kill(keeper, signal.SIGKILL)
    eventually("the keeper is dead", lambda: processes.start_time(keeper) is None)
    assert "its keeper is gone" in chaos.active()[0]
    assert chaos.off() == [f"{words}: undone"]
    assert _traces(running) == []
    running.steady()
    _works(read)


def test_a_diverted_instance_that_is_killed_is_followed(chaos: Chaos, running: RunningStack, read: Read) -> None:
    chaos.order("latency order-service 5", 120)
    chaos.order("kill order-service all")
    eventually("both stand-ins pass again", lambda: len(running.instances("order-service")) == 2, 60)
    _works(read)
    assert all(traffic_redirect.TAG in entry["Service"]["Tags"] for entry in running.instances("order-service"))
    assert running.clients.nomad.job.get_deployment("order-service")["Status"] == "successful"


def _traces(running: RunningStack) -> list[Any]:
    """What a fault has left in Consul."""
    found = running.clients.consul.agent.services().values()
    checks = running.clients.consul.agent.checks()
    tagged = [entry["ID"] for entry in found if traffic_redirect.TAG in (entry["Tags"] or [])]
    return tagged + [name for name in checks if name.startswith("_service_maintenance")]
