"""Why an allocation is not healthy, from Nomad's own answers: a held port, the end of a task, a failing check."""

from __future__ import annotations

from typing import Any

import pytest

from stack.cluster.job_health.instances import explain

Json = dict[str, Any]

NOW = 1_795_990_250.0
EVENT: Json = {"Type": "Terminated", "ExitCode": 1, "Signal": 0, "DisplayMessage": "Exit Code: 1", "Details": {}}
PASSING = {"Name": "liveness", "Status": "passing", "Output": "success"}


def event(seconds_ago: float = 5, **fields: Any) -> Json:
    return EVENT | {"Time": int((NOW - seconds_ago) * 1e9)} | fields


def allocation(*events: Json, state: str = "pending", restarts: int = 1, failed: bool = False) -> Json:
    task = {"State": state, "Failed": failed, "Restarts": restarts, "Events": list(events)}
    ports = [{"HostIP": "127.0.0.1", "Label": "grpc", "Value": 28256}]
    return {
        "ID": "842c1cc8-4fa3-c700-79a1-cea91f95fb86",
        "JobID": "user-service",
        "AllocatedResources": {"Shared": {"Ports": ports}},
        "TaskStates": {"user-service": task},
    }


def texts(alloc: Json, holder: str | None = None, checks: list[Json] | None = None) -> list[str]:
    return [problem.text for problem in explain(alloc, lambda _: holder, checks, NOW)]


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_port_that_another_process_holds_is_the_cause(state: str) -> None:
    alloc = allocation(event(), event(Type="Restarting"), state=state)
    (problem,) = explain(alloc, lambda port: f"process 7 (nc -l {port})", [], NOW)
    held = "port 28256 (grpc) of user-service, allocation 842c1cc8 is held by process 7 (nc -l 28256)"
    assert (problem.text, problem.lasting) == (held, True)
    assert "nomad alloc stop 842c1cc8" in problem.remedy


def test_a_listener_of_an_allocation_that_never_failed_is_no_cause() -> None:
    failing = PASSING | {"Status": "critical", "Output": "dial tcp 127.0.0.1:28256: connect: connection refused"}
    (text,) = texts(allocation(event(Type="Started"), state="running"), "process 7 (nc)", [PASSING, failing])
    assert text.startswith("check 'liveness' of user-service, allocation 842c1cc8 fails: dial tcp")


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (event(), "ended with exit code 1, and Nomad restarts it"),
        (event(ExitCode=0, Signal=9), "ended by signal 9, and Nomad restarts it"),
        (event(ExitCode=137, Details={"oom_killed": "true"}), "needed more than its memory limit"),
        (
            event(Type="Failed Artifact Download", DownloadError=f"failed: {'x' * 900}: connection refused"),
            "connection refused",
        ),
        (event(Type="Driver Failure", DriverError="fork/exec /none: no such file"), "fork/exec /none: no such file"),
        (event(Type="Setup Failure", SetupError="", DisplayMessage="failed to setup alloc"), "failed to setup alloc"),
    ],
)
def test_the_last_failure_of_a_task_keeps_its_reason(ended: Json, words: str) -> None:
    (text,) = texts(allocation(event(ExitCode=3), ended, event(Type="Restarting")))
    assert words in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("alloc", "counts"),
    [
        (allocation(event(5), event(2, Type="Started"), state="running"), True),
        (allocation(event(600), event(599, Type="Started"), state="running"), False),
        (allocation(event(600), event(599, ExitCode=0), state="dead"), False),
        (allocation(event(600), state="dead", failed=True), True),
    ],
)
def test_a_failure_that_is_over_is_not_the_cause(alloc: Json, counts: bool) -> None:
    assert texts(alloc, checks=[PASSING]) == (
        ["task user-service of user-service, allocation 842c1cc8 ended with exit code 1, and Nomad restarts it"]
        if counts
        else []
    )


def test_a_task_that_waits_for_its_template_says_so() -> None:
    waits = event(Type="Template", DisplayMessage="Missing: vault.read(secret/data/postgres)")
    assert "has not started: Missing: vault.read(secret/data/postgres)" in texts(allocation(waits))[0]


def test_every_failing_check_is_named_with_its_output() -> None:
    critical = {"Name": "readiness", "Status": "critical", "Output": "HTTP GET /readyz:\n 503 Service Unavailable"}
    silent = {"Name": "liveness", "Status": "critical", "Output": ""}
    found = texts(allocation(state="running"), checks=[critical, silent, PASSING])
    assert [text.partition(" fails: ")[2] for text in found] == [
        "HTTP GET /readyz: 503 Service Unavailable",
        "no result yet",
    ]


def test_checks_without_any_result_are_one_problem() -> None:
    silent = {"Name": "liveness", "Status": "critical", "Output": ""}
    found = texts(allocation(state="running"), checks=[silent, silent | {"Name": "readiness"}])
    assert found == ["user-service, allocation 842c1cc8 has just started: no check has a result yet"]


def test_a_running_allocation_that_consul_does_not_list_is_a_problem() -> None:
    assert texts(allocation(state="running")) == [
        "Consul does not list the services of user-service, allocation 842c1cc8"
    ]
