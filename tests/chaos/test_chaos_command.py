"""`./justw chaos`: each fault has its effect, ends by `off` or by itself, and leaves nothing behind."""

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
from support.traffic.api_user import ApiUser

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
def read(user: ApiUser) -> Read:
    """Reads an order that was placed before the fault."""
    placed = eventually("an order can be placed", lambda: _placed(user), 30)
    return lambda: user.get(f"/v1/orders/{placed}")


def _is_refused(call: Read) -> float:
    """Seconds of the first call that fails; callers learn of the fault from Consul a moment after it began."""
    return eventually("a call is refused", lambda: _seconds_if_refused(*timed(call)), 20)


def _seconds_if_refused(status: int, seconds: float) -> float | None:
    return seconds if status in REFUSED else None


def _placed(user: ApiUser) -> str | None:
    reply = user.place()
    return str(reply.json()["id"]) if reply.status_code == httpx.codes.CREATED else None


def _works(call: Read, status: int = httpx.codes.OK) -> None:
    eventually("calls pass again", lambda: timed(call)[0] == status, 30)


def test_the_command_starts_lists_and_ends_a_fault(running: RunningStack, chaos: Chaos) -> None:
    output = _type(running, "latency", "user-service", "5", "--for", "60")
    assert re.search(r"until \d\d:\d\d:\d\d \(60 s\); earlier with ./justw chaos off", output)
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
        ("latency nobody 5", "Consul lists none"),
        ("pause nobody", "no job declares it"),
    ],
)
def test_an_impossible_fault_is_refused_with_the_reason(chaos: Chaos, words: str, why: str) -> None:
    with pytest.raises(StackError, match=why):
        chaos.start(words)
    assert chaos.active() == []


def test_a_kill_takes_no_duration(chaos: Chaos) -> None:
    with pytest.raises(StackError, match="it has no duration"):
        chaos.start("kill gateway", 5)


@pytest.mark.parametrize("service", ["order-service", "gateway"])
def test_latency_makes_every_answer_late(chaos: Chaos, read: Read, service: str) -> None:
    eventually("answers are quick", lambda: quickest(read) < 0.5, 20)
    chaos.start(f"latency {service} 500", 60)
    eventually("every answer is late", lambda: quickest(read) >= 0.5, 20)
    chaos.off()
    eventually("answers are quick again", lambda: quickest(read) < 0.5, 20)


def test_errors_reset_connections(chaos: Chaos, read: Read) -> None:
    chaos.start("errors order-service 100", 60)
    _is_refused(read)
    chaos.off()
    _works(read)


def test_dropped_calls_end_with_their_deadline(chaos: Chaos, read: Read) -> None:
    chaos.start("drop order-service", 60)
    assert _is_refused(read) < ANSWERED_SECONDS
    chaos.off()
    _works(read)


def test_a_low_bandwidth_makes_answers_slow(chaos: Chaos, read: Read) -> None:
    eventually("answers are quick", lambda: quickest(read) < 0.5, 20)
    chaos.start("slow order-service 200", 60)
    eventually("every answer is late", lambda: quickest(read) >= 0.5, 20)
    chaos.off()
    eventually("answers are quick again", lambda: quickest(read) < 0.5, 20)


def test_calls_fail_over_half_open_connections_until_the_fault_ends(chaos: Chaos, read: Read) -> None:
    chaos.start("half-open order-service", 60)
    assert _is_refused(read) < ANSWERED_SECONDS
    chaos.off()
    _works(read)


def test_a_paused_service_lets_calls_run_into_their_deadline(
    chaos: Chaos, running: RunningStack, user: ApiUser
) -> None:
    before = running.pids("user-service")
    chaos.start("pause user-service all", 60)
    assert _is_refused(lambda: user.get("/v1/users/me")) < ANSWERED_SECONDS + 3.0
    chaos.off()
    _works(lambda: user.get("/v1/users/me"))
    assert running.pids("user-service") == before


@pytest.mark.parametrize("service", ["user-service", "order-service-worker"])
def test_a_killed_instance_is_started_again(chaos: Chaos, running: RunningStack, service: str) -> None:
    running.wait_until_healthy()
    wanted = len(running.instances(service))
    output = chaos.start(f"kill {service}")
    victim = int(re.findall(r"process (\d+) is killed", output)[0])
    eventually("it is dead", lambda: processes.start_time(victim) is None)
    eventually("all instances pass their checks", lambda: len(running.instances(service)) == wanted, 30)


def test_a_paused_database_fails_its_check(chaos: Chaos, running: RunningStack, read: Read) -> None:
    eventually("the check passes", lambda: running.instances("postgres"), 15)
    chaos.start("pause postgres", 60)
    eventually("the check fails", lambda: not running.instances("postgres"), 15)
    chaos.off()
    eventually("the check passes", lambda: running.instances("postgres"), 15)
    _works(read)


def test_a_killed_database_is_started_again(chaos: Chaos, user: ApiUser, read: Read) -> None:
    output = chaos.start("database kill")
    victim = int(re.findall(r"process (\d+) is killed", output)[0])
    eventually("it is dead", lambda: processes.start_time(victim) is None)
    _works(read)
    _works(user.place, httpx.codes.CREATED)


def test_a_full_disk_refuses_orders_answers_reads_and_needs_no_restart(chaos: Chaos, user: ApiUser, read: Read) -> None:
    chaos.start("disk full", 60)
    assert timed(user.place)[0] == httpx.codes.SERVICE_UNAVAILABLE
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    _works(user.place, httpx.codes.CREATED)


@pytest.mark.parametrize("agent", ["consul", "nomad"])
def test_an_agent_that_is_down_comes_back(chaos: Chaos, running: RunningStack, agent: str, read: Read) -> None:
    chaos.start(f"{agent} down", 60)
    assert timed(lambda: httpx.get(running.url(agent), timeout=2))[0] == 0
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    assert agents.daemon(running.stack, agent).pid() is not None
    _works(lambda: httpx.get(running.url(agent) + "/v1/status/leader", timeout=2))


def test_vault_is_sealed_until_the_fault_ends_and_reads_go_on(chaos: Chaos, running: RunningStack, read: Read) -> None:
    def healthy() -> httpx.Response:
        return httpx.get(running.url("vault") + "/v1/sys/health", timeout=2)

    chaos.start("vault sealed", 60)
    assert healthy().json()["sealed"] is True
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    assert healthy().json()["sealed"] is False


def test_hanging_telemetry_never_answers_and_reads_go_on(chaos: Chaos, running: RunningStack, read: Read) -> None:
    if not running.instances("telemetry"):
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    page = lambda: httpx.get(running.url("telemetry"), timeout=2)  # noqa: E731
    eventually("it answers", lambda: timed(page)[0] == httpx.codes.OK, 10)
    chaos.start("telemetry hanging", 60)
    assert timed(page)[0] == 0
    assert timed(read)[0] == httpx.codes.OK
    chaos.off()
    _works(page)


def test_faults_end_by_themselves_and_leave_nothing_behind(chaos: Chaos, running: RunningStack, read: Read) -> None:
    for words in ("latency user-service 5", "drop order-service", "pause telemetry", "disk full", "vault sealed"):
        chaos.start(words, 3)
    chaos.wait_until_over(60)
    assert _traces(running) == []
    running.wait_until_healthy()
    _works(read)


@pytest.mark.parametrize("words", ["drop order-service", "pause user-service all"])
def test_off_undoes_a_fault_whose_runner_was_killed(
    chaos: Chaos, running: RunningStack, read: Read, words: str
) -> None:
    chaos.start(words, 600)
    runner = chaos.runner()
    os.kill(runner, signal.SIGKILL)
    eventually("the runner is dead", lambda: processes.start_time(runner) is None)
    assert "its process has ended" in chaos.active()[0]
    assert chaos.off() == [f"{words}: undone"]
    assert _traces(running) == []
    running.wait_until_healthy()
    _works(read)


def test_a_redirect_follows_an_instance_that_is_killed_and_started_again(
    chaos: Chaos, running: RunningStack, read: Read
) -> None:
    chaos.start("latency order-service 5", 120)
    chaos.start("kill order-service all")
    eventually("both proxies pass again", lambda: len(running.instances("order-service")) == 2, 60)
    _works(read)
    assert all(traffic_redirect.TAG in entry["Service"]["Tags"] for entry in running.instances("order-service"))
    assert running.clients.nomad.job.get_deployment("order-service")["Status"] == "successful"


def _traces(running: RunningStack) -> list[Any]:
    """The entries of faults in Consul."""
    found = running.clients.consul.agent.services().values()
    checks = running.clients.consul.agent.checks()
    tagged = [entry["ID"] for entry in found if traffic_redirect.TAG in (entry["Tags"] or [])]
    return tagged + [name for name in checks if name.startswith("_service_maintenance")]
