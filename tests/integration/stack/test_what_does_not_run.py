"""`plan`, `status` and `deploy` say why something does not run, within ten seconds; a deploy repairs what it can.

Control: on a healthy stack `plan` has no problem, and `status` no line about one.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest
from support.cluster_faults import closed_node, drained_node, forgetful_consul, held_ports, replace, stop
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually

from stack.machine import processes

pytestmark = pytest.mark.timeout(900)

# The ten seconds of a cause, with room for a busy machine; counted from the start of the step.
SECONDS = 30.0


@pytest.fixture
def healthy(running: RunningStack) -> Iterator[RunningStack]:
    running.wait_until_healthy(90)
    assert json.loads(run("plan", "--json").stdout)["problems"] == []
    assert "\n! " not in run("status").stdout
    yield running
    running.wait_until_healthy(120)


def _says(words: str) -> None:
    """Every command names a cause: `status` as text, `plan` as JSON, and a deploy, which fails."""
    eventually("status says it", lambda: re.search(words, run("status").stdout), 30)
    problems = json.loads(run("plan", "--json").stdout)["problems"]
    assert any(re.search(words, problem["text"]) and problem["remedy"] for problem in problems), problems
    deploy = run("deploy", seconds=300)
    assert deploy.returncode == 1, deploy.stdout
    assert re.search(words, deploy.stderr), deploy.stderr
    assert "Deployment " not in deploy.stderr
    failed = re.search(r"job \S+ +failed +\((\d+\.\d) s\)", deploy.stdout)
    assert failed, deploy.stdout
    assert float(failed[1]) < SECONDS


def test_a_node_that_takes_no_new_instance_is_named(healthy: RunningStack) -> None:
    with closed_node(healthy):
        stop(healthy, healthy.allocations("gateway")[0]["ID"])
        _says(r"no node can run group api of job gateway: node \S+ is not eligible")


@pytest.mark.long
def test_a_drained_node_is_named(healthy: RunningStack) -> None:
    with drained_node(healthy):
        _says(r"no node can run group \S+ of job artifacts: node \S+ (is being|was) drained")


def test_a_dimension_that_is_exhausted_is_named_with_its_figures(healthy: RunningStack) -> None:
    nomad = healthy.clients.nomad
    job = nomad.job.get_job("gateway")
    task = job["TaskGroups"][0]["Tasks"][0]["Resources"]
    before = task["MemoryMB"]
    try:
        task["MemoryMB"] = 10_000_000
        nomad.job.register_job("gateway", {"Job": job})
        words = r"memory is exhausted on 1 node, an instance needs 10000000 MB; node \S+ has \d+ MB as Nomad counts"
        eventually("plan names memory", lambda: re.search(words, run("plan").stdout), 20)
        assert re.search(words, run("status").stdout)
    finally:
        task["MemoryMB"] = before
        nomad.job.register_job("gateway", {"Job": job})


def test_a_port_that_another_process_holds_is_named_with_the_process(healthy: RunningStack) -> None:
    with held_ports(healthy):
        stop(healthy, healthy.allocations("user-service")[0]["ID"])
        _says(rf"port \d+ \(grpc\) of user-service, allocation \w+ is held by process {os.getpid()} ")
    eventually("Nomad starts it again", lambda: len(healthy.instances("user-service")) == 2, 60)


def test_a_failing_check_is_named(healthy: RunningStack) -> None:
    stopped = healthy.pids("gateway")[0]
    processes.pause(stopped)
    try:
        words = "check 'readiness' of gateway, allocation"
        eventually("plan names the check", lambda: words in run("plan").stdout, 40)
        assert words in run("status").stdout
    finally:
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.long
def test_the_instances_that_consul_forgot_are_replaced_by_a_deploy(healthy: RunningStack) -> None:
    before = {alloc["ID"] for job in ("edge", "user-service") for alloc in healthy.allocations(job)}
    replace(healthy, "edge")
    untouched = {alloc["ID"] for alloc in healthy.allocations("order-service")}
    with forgetful_consul(healthy, "user-service"):
        plan = run("plan")
        assert plan.returncode == 2
        new = [alloc["ID"] for alloc in healthy.allocations("user-service")]
        assert not set(new) & before
        for allocation in new:
            assert f"~ nomad allocation user-service {allocation[:8]}" in plan.stdout
            assert f"user-service, allocation {allocation[:8]}: Consul does not know its token" in plan.stdout
        assert "Consul does not know its token, so it cannot register" in run("status").stdout
    assert run("plan").returncode == 0
    assert not {alloc["ID"] for alloc in healthy.allocations("user-service")} & set(new)
    assert {alloc["ID"] for alloc in healthy.allocations("order-service")} == untouched


@pytest.mark.long
def test_the_edge_is_replaced_if_consul_forgot_the_token_of_its_templates(healthy: RunningStack) -> None:
    (edge,) = healthy.allocations("edge")
    tokens = healthy.clients.consul.acl.tokens
    secret = (healthy.folder(edge, "edge") / "secrets" / "consul_token").read_text().strip()
    tokens.delete(tokens.self(token=secret)["AccessorID"])
    plan = run("plan")
    assert f"~ nomad allocation edge {edge['ID'][:8]}" in plan.stdout
    assert "the templates of task edge cannot read Consul" in plan.stdout
    deploy = run("deploy", seconds=300)
    assert deploy.returncode == 0, deploy.stderr
    assert "the templates of task edge cannot read Consul; it is replaced" in deploy.stdout
    (other,) = healthy.allocations("edge")
    assert other["ID"] != edge["ID"]
    assert run("plan").returncode == 0
