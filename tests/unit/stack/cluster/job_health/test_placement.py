"""Why Nomad places nothing, from its own answers (Nomad 1.11.3): the cause, the figures and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from stack.cluster.job_health.placement import unplaced
from stack.cluster.job_health.problem import Problem

Json = dict[str, Any]

NODE: Json = {
    "ID": "133d289d-cad4-0c68-05ff-e4bdee949ae2",
    "Name": "waypost-1",
    "Status": "ready",
    "SchedulingEligibility": "eligible",
    "Drain": False,
    "LastDrain": None,
    "NodeResources": {"Cpu": {"CpuShares": 2000}, "Memory": {"MemoryMB": 3800}, "Disk": {"DiskMB": 258019}},
    "ReservedResources": {"Cpu": {"CpuShares": 0}, "Memory": {"MemoryMB": 0}, "Disk": {"DiskMB": 0}},
}
JOB: Json = {
    "ID": "gateway",
    "TaskGroups": [
        {"Name": "api", "EphemeralDisk": {"SizeMB": 300}, "Tasks": [{"Resources": {"CPU": 200, "MemoryMB": 256}}]}
    ],
}
METRIC: Json = {
    "NodesAvailable": {"dc1": 1},
    "NodesEvaluated": 1,
    "NodesExhausted": 1,
    "NodesFiltered": 0,
    "ConstraintFiltered": None,
    "DimensionExhausted": None,
    "QuotaExhausted": None,
}


def allocation(status: str, megabytes: int) -> Json:
    task = {"Cpu": {"CpuShares": 1900}, "Memory": {"MemoryMB": megabytes}}
    resources = {"Shared": {"DiskMB": 300}, "Tasks": {"any": task}}
    return {"NodeID": NODE["ID"], "ClientStatus": status, "AllocatedResources": resources}


def blocked(index: int = 76, **metric: Any) -> Json:
    return {"Status": "blocked", "CreateIndex": index, "FailedTGAllocs": {"api": METRIC | metric}}


def explained(evaluations: list[Json], node: Json = NODE) -> Problem:
    (problem,) = unplaced(JOB, evaluations, [node], [allocation("running", 3700), allocation("complete", 9999)])
    return problem


@pytest.mark.parametrize(
    ("state", "words", "remedy"),
    [
        ({"Drain": True, "SchedulingEligibility": "ineligible"}, "waypost-1 is being drained", "drain -disable 133d"),
        ({"SchedulingEligibility": "ineligible"}, "waypost-1 is not eligible for new work", "eligibility -enable 133d"),
        (
            {"SchedulingEligibility": "ineligible", "LastDrain": {"Status": "complete"}},
            "waypost-1 was drained and is not eligible",
            "eligibility -enable 133d",
        ),
        ({"Status": "down"}, "waypost-1 is down", "logs nomad"),
    ],
)
def test_a_closed_node_is_named_with_the_command_that_opens_it(state: Json, words: str, remedy: str) -> None:
    problem = explained([blocked(NodesEvaluated=0, NodesExhausted=0, NodesAvailable={})], NODE | state)
    assert words in problem.text
    assert "group api of job gateway" in problem.text
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ("memory", "an instance needs 256 MB; node waypost-1 has 3800 MB as Nomad counts, 3700 are reserved"),
        ("cpu", "an instance needs 200 MHz; node waypost-1 has 2000 MHz as Nomad counts, 1900 are reserved"),
        ("disk", "an instance needs 300 MB; node waypost-1 has 258019 MB as Nomad counts, 300 are reserved"),
        ("network: reserved port collision http=8080", "reserved port collision http=8080 on 1 node"),
        ("a dimension of a later Nomad", "a dimension of a later Nomad on 1 node"),
    ],
)
def test_an_exhausted_dimension_has_its_figures(dimension: str, words: str) -> None:
    assert words in explained([blocked(DimensionExhausted={dimension: 1})]).text


@pytest.mark.parametrize("constraint", ["missing drivers", "${attr.kernel.name} = windows"])
def test_a_constraint_that_excludes_every_node_is_quoted(constraint: str) -> None:
    assert f"{constraint} excludes 1 node" in explained([blocked(ConstraintFiltered={constraint: 1})]).text


def test_a_cluster_without_a_node_is_a_cause() -> None:
    evaluation = blocked(NodesEvaluated=0, NodesAvailable={})
    (problem,) = unplaced(JOB, [evaluation], [], [])
    assert "no node in the datacenter" in problem.text


@pytest.mark.parametrize(("status", "lasting"), [("ready", True), ("initializing", False), ("down", False)])
def test_a_deploy_waits_for_a_node_that_is_not_ready_yet(status: str, lasting: bool) -> None:
    node = NODE | {"Status": status, "SchedulingEligibility": "ineligible"}
    (problem,) = unplaced(JOB, [blocked(NodesEvaluated=0)], [node], [])
    assert problem.lasting == lasting


def test_only_the_newest_blocked_evaluation_counts() -> None:
    old, new = blocked(7, DimensionExhausted={"cpu": 1}), blocked(8, DimensionExhausted={"memory": 1})
    assert "memory is exhausted" in explained([new, old, {"Status": "complete", "FailedTGAllocs": None}]).text


def test_without_a_blocked_evaluation_there_is_no_problem() -> None:
    placed = {"Status": "complete", "CreateIndex": 9, "FailedTGAllocs": {"api": METRIC}}
    assert unplaced(JOB, [placed], [NODE | {"Drain": True}], []) == []
