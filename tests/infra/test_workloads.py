"""Nomad: who may use it, and what it runs: every job that has a file and no other, with every instance healthy."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from support.infrastructure.deployed_stack import DeployedStack
from support.stack_under_test import eventually
from support.traffic.performance_targets import Effort, efforts

INSTANCES = {
    "artifacts": 1,
    "telemetry": 1,
    "postgres": 1,
    "user-service": 2,
    "order-service": 4,
    "gateway": 2,
    "edge": 1,
}
SERVICES = ("user-service", "order-service", "gateway")


@pytest.fixture(scope="module")
def jobs(deployed: DeployedStack) -> set[str]:
    """The jobs that Nomad runs; the telemetry UI is left out on a machine without a C++ compiler."""
    return {job["ID"] for job in deployed.nomad("/v1/jobs") if job["Status"] == "running"}


def test_nomad_has_elected_a_leader(deployed: DeployedStack) -> None:
    assert deployed.nomad("/v1/status/leader") == f"127.0.0.1:{deployed.stack.port('nomad_rpc')}"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/nodes", "/v1/acl/tokens", "/v1/vars", "/v1/acl/policies"])
def test_nomad_shows_an_anonymous_caller_nothing(deployed: DeployedStack, path: str) -> None:
    reply = deployed.anonymous("nomad", path)
    assert reply.status == 403 or json.loads(reply.text) == []


def test_nomad_has_one_token_of_management_and_no_policy(deployed: DeployedStack) -> None:
    assert [token["Name"] for token in deployed.nomad("/v1/acl/tokens")] == ["Bootstrap Token"]
    assert deployed.nomad("/v1/acl/policies") == []


def test_the_public_metrics_of_nomad_name_no_allocation(deployed: DeployedStack) -> None:
    allocations = [alloc["ID"] for alloc in deployed.nomad("/v1/allocations")]
    text = deployed.anonymous("nomad", "/v1/metrics").text
    assert allocations
    assert [alloc for alloc in allocations if alloc in text] == []


def test_the_node_takes_work(deployed: DeployedStack) -> None:
    (node,) = deployed.nomad("/v1/nodes")
    assert (node["Status"], node["SchedulingEligibility"], node["Drain"]) == ("ready", "eligible", False)


def test_nomad_runs_the_jobs_that_have_a_file_and_no_other(jobs: set[str]) -> None:
    assert jobs | {"telemetry"} == set(INSTANCES)


@pytest.mark.parametrize("job", INSTANCES)
def test_a_job_runs_with_every_instance(deployed: DeployedStack, jobs: set[str], job: str) -> None:
    require(jobs, job)
    assert len(deployed.allocations(job)) == INSTANCES[job]


@pytest.mark.parametrize("job", INSTANCES)
def test_the_log_of_a_task_can_be_read_from_nomad(deployed: DeployedStack, jobs: set[str], job: str) -> None:
    require(jobs, job)
    logs = [
        deployed.log(alloc["ID"], task, stream)
        for alloc in deployed.allocations(job)
        for task in alloc["TaskStates"]
        for stream in ("stdout", "stderr")
    ]
    assert "".join(logs)


def require(jobs: set[str], job: str) -> None:
    if job == "telemetry" and job not in jobs:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")


@pytest.mark.parametrize("job", SERVICES)
def test_the_newest_deployment_of_a_service_succeeded(deployed: DeployedStack, job: str) -> None:
    assert deployed.nomad(f"/v1/job/{job}/deployment")["Status"] == "successful"


def test_no_job_carries_a_secret(deployed: DeployedStack, jobs: set[str], secrets: set[str]) -> None:
    assert len(secrets) >= 5
    for job in jobs:
        text = json.dumps(deployed.nomad(f"/v1/job/{job}"))
        assert not [secret for secret in secrets if secret in text]


def test_an_identity_outlives_a_long_sleep_and_a_restart_of_nomad(deployed: DeployedStack, host: Any) -> None:
    """Nomad's timer for the next one stands still while the machine sleeps, and Nomad stores only the first one."""
    files = [
        host.file(f"{folder}/secrets/nomad_{name}.jwt")
        for job in SERVICES
        for folder in deployed.task_folders(job)
        for name in ("consul", "vault")
    ]
    claims = [jwt.decode(file.content_string, options={"verify_signature": False}) for file in files]
    assert {each["exp"] - each["iat"] for each in claims} == {7 * 24 * 3600}


@pytest.mark.disturbs
@pytest.mark.parametrize("job", SERVICES)
@efforts(1, 3)
def test_a_killed_instance_is_replaced(deployed: DeployedStack, effort: Effort, job: str) -> None:
    """With `-m long`, within ten seconds: on a machine that does nothing else."""
    for _ in range(effort.times):
        before, passing = deployed.pids(job), len(deployed.instances(job))
        deployed.run("kill -9 %s", str(before[0]))
        killed = time.monotonic()
        eventually(f"{job} runs again", lambda: len(set(deployed.pids(job)) - {before[0]}) == len(before), 30)  # noqa: B023
        eventually(f"{job} passes its checks", lambda: deployed.passing(job) == passing, 30)  # noqa: B023
        assert time.monotonic() - killed < effort.bound(10.0, 30.0)


@pytest.mark.disturbs
@pytest.mark.parametrize("job", [*SERVICES, "edge", "artifacts"])
def test_signals_that_reload_elsewhere_end_no_process(deployed: DeployedStack, job: str) -> None:
    before = deployed.pids(job)
    for name in ("HUP", "USR1", "USR2"):
        for pid in before:
            deployed.run(f"kill -{name} %s", str(pid))
    time.sleep(2)
    assert deployed.pids(job) == before
