"""The causes that a private Nomad agent gives are named within seconds; no stack and no Consul is needed.

Control: a job that runs is healthy and has no problem.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nomad
import pytest

from stack.build import tools
from stack.cluster.clients import Clients
from stack.cluster.job_health.job_state import JobState
from stack.cluster.job_health.repair import retry_failed
from stack.cluster.rollout import Rollout
from stack.config import Stack
from stack.console import StackError
from stack.waiting import poll

from ..chassis.servers import Server, free_port

STACK = Stack("any", 0)
SECONDS = 30.0  # ten for the cause, more on a busy machine
RUNS = "exec sleep 600"


@pytest.fixture(scope="module")
def dynamic_port() -> int:
    """The only port that the agent may assign."""
    return free_port()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory, dynamic_port: int) -> Iterator[Clients]:
    binary, folder = tools.find("nomad"), tmp_path_factory.mktemp("nomad")
    if binary is None:
        pytest.skip("needs nomad: ./justw deploy builds it")
    ports = {name: free_port() for name in ("http", "rpc", "serf")}
    settings = {
        "bind_addr": "127.0.0.1",
        "ports": ports,
        "log_level": "ERROR",
        "client": {
            "network_interface": "lo",
            "min_dynamic_port": dynamic_port,
            "max_dynamic_port": dynamic_port,
            "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean"},
        },
        "consul": {"address": "127.0.0.1:1"},
    }
    (folder / "agent.json").write_text(json.dumps(settings))
    command = [str(binary), "agent", "-dev", f"-config={folder / 'agent.json'}"]
    url = f"http://127.0.0.1:{ports['http']}"
    server = Server(command, url, "/v1/status/leader", "X-Nomad-Token", Path(folder / "log"))
    try:
        server.start()
        api = nomad.Nomad(host="127.0.0.1", port=ports["http"])
        assert poll(lambda: [node for node in api.nodes.get_nodes() if node["Status"] == "ready"], 60)
        yield cast(Clients, SimpleNamespace(nomad=api))
        for job in api.jobs.get_jobs():
            api.job.deregister_job(job["ID"], purge=True)
        assert poll(lambda: not _live(api), 30)
    finally:
        server.kill()


def _live(api: Any) -> list[Any]:
    return [alloc for alloc in api.allocations.get_allocations() if alloc["ClientStatus"] in {"running", "pending"}]


@pytest.fixture
def job(clients: Clients) -> Iterator[dict[str, Any]]:
    """A job that runs; it is removed after the test."""
    script = "trap 'exit 0' TERM; " + RUNS
    task = {
        "Name": "probe",
        "Driver": "raw_exec",
        "Config": {"command": "/bin/sh", "args": ["-c", script]},
        "Resources": {"CPU": 20, "MemoryMB": 20},
    }
    group = {
        "Name": "only",
        "Count": 1,
        "Tasks": [task],
        "RestartPolicy": {"Attempts": 60, "Interval": 60_000_000_000, "Delay": 1_000_000_000, "Mode": "delay"},
        "EphemeralDisk": {"SizeMB": 120},
    }
    yield {"ID": "probe", "Name": "probe", "Type": "service", "Datacenters": ["dc1"], "TaskGroups": [group]}
    clients.nomad.job.deregister_job("probe", purge=True)
    assert poll(lambda: not _live(clients.nomad), 30)


def _register(clients: Clients, job: dict[str, Any]) -> None:
    clients.nomad.job.register_job("probe", {"Job": job})


def _cause(clients: Clients) -> str:
    """Waits for the current version as a deploy does, which must fail with the cause in time."""
    began = time.monotonic()
    with pytest.raises(StackError) as failed:
        Rollout(STACK, clients, "probe").wait(120)
    assert time.monotonic() - began < SECONDS
    problems = JobState(STACK, clients, "probe").problems(clients.nomad.job.get_job("probe"))
    assert problems[0].text in failed.value.why
    assert problems[0].remedy == failed.value.next_step
    return failed.value.why


def test_a_job_that_runs_has_no_problem(clients: Clients, job: dict[str, Any]) -> None:
    _register(clients, job)
    Rollout(STACK, clients, "probe").wait(60)
    state = JobState(STACK, clients, "probe")
    assert state.is_healthy(clients.nomad.job.get_job("probe"))


def test_the_built_nomad_has_no_driver_for_tests(clients: Clients) -> None:
    node = clients.nomad.node.get_node(clients.nomad.nodes.get_nodes()[0]["ID"])
    assert "raw_exec" in node["Drivers"]
    assert "mock_driver" not in node["Drivers"]


def test_exhausted_memory_is_named(clients: Clients, job: dict[str, Any]) -> None:
    job["TaskGroups"][0]["Tasks"][0]["Resources"]["MemoryMB"] = 10_000_000
    _register(clients, job)
    why = _cause(clients)
    assert "memory is exhausted on 1 node, an instance needs 10000000 MB" in why
    assert "as Nomad counts" in why


def test_exhausted_processors_are_named(clients: Clients, job: dict[str, Any]) -> None:
    job["TaskGroups"][0]["Tasks"][0]["Resources"]["CPU"] = 10_000_000
    _register(clients, job)
    assert "cpu is exhausted on 1 node, an instance needs 10000000 MHz" in _cause(clients)


def test_a_missing_driver_is_named(clients: Clients, job: dict[str, Any]) -> None:
    job["TaskGroups"][0]["Tasks"][0] |= {"Driver": "docker", "Config": {"image": "none"}}
    _register(clients, job)
    assert "missing drivers excludes 1 node" in _cause(clients)


@pytest.mark.parametrize("drained", [False, True])
def test_a_closed_node_is_named(clients: Clients, job: dict[str, Any], drained: bool) -> None:
    node = clients.nomad.nodes.get_nodes()[0]["ID"]
    api = clients.nomad.node
    if drained:
        api.request(node, "drain", json={"DrainSpec": {"Deadline": -1}}, method="post")
    else:
        api.eligible_node(node, ineligible=True)
    try:
        _register(clients, job)
        assert ("was drained" if drained else "is not eligible") in _cause(clients)
    finally:
        api.request(node, "drain", json={"DrainSpec": None, "MarkEligible": True}, method="post")
        api.eligible_node(node, eligible=True)


def test_a_held_port_is_named_with_its_holder(clients: Clients, job: dict[str, Any], dynamic_port: int) -> None:
    job["TaskGroups"][0]["Networks"] = [{"Mode": "host", "DynamicPorts": [{"Label": "grpc"}]}]
    job["TaskGroups"][0]["Tasks"][0]["Config"]["args"] = ["-c", "echo 'address already in use' >&2; exit 1"]
    with socket.socket() as held:
        held.bind(("127.0.0.1", dynamic_port))
        held.listen()
        _register(clients, job)
        why = _cause(clients)
    assert f"port {dynamic_port} (grpc) of probe, allocation " in why
    assert f"is held by process {os.getpid()} " in why
    assert "probe: address already in use" in why


def test_a_task_that_ends_is_reported_with_its_last_lines(clients: Clients, job: dict[str, Any]) -> None:
    job["TaskGroups"][0]["Tasks"][0]["Config"]["args"] = ["-c", "echo the reason >&2; exit 7"]
    _register(clients, job)
    reported: list[str] = []
    with pytest.raises(StackError, match="the reason") as failed:
        Rollout(STACK, clients, "probe", report=reported.append).wait(15)
    assert "task probe of probe, allocation " in reported[0]
    assert "ended with exit code 7" in reported[0]
    assert failed.value.next_step == "./justw logs probe"


def test_a_version_that_never_became_healthy_is_started_again_by_the_next_deploy(
    clients: Clients, job: dict[str, Any], tmp_path: Path
) -> None:
    """The control: Nomad by itself leaves it as it is."""
    group, cause_is_gone = job["TaskGroups"][0], tmp_path / "fixed"
    group["Tasks"][0]["Config"]["args"] = ["-c", f"test -e {cause_is_gone} || exit 1; {RUNS}"]
    group["RestartPolicy"] = {"Attempts": 0, "Interval": 60_000_000_000, "Delay": 1_000_000_000, "Mode": "fail"}
    second = 1_000_000_000
    group["ReschedulePolicy"] = {"Unlimited": True, "DelayFunction": "constant", "Delay": 3600 * second}
    group["Update"] = {"MaxParallel": 1, "HealthCheck": "task_states", "MinHealthyTime": second,
                       "HealthyDeadline": 5 * second, "ProgressDeadline": 0}  # fmt: skip
    api = clients.nomad.job

    def failed() -> bool:
        return [each["Status"] for each in api.get_deployments("probe")] == ["failed"]

    _register(clients, job)
    assert poll(failed, SECONDS)
    cause_is_gone.touch()
    time.sleep(2)
    assert not _live(clients.nomad)
    index = retry_failed(STACK, clients, "probe")
    Rollout(STACK, clients, "probe", index).wait(60)
    assert [alloc["ClientStatus"] for alloc in _live(clients.nomad)] == ["running"]
