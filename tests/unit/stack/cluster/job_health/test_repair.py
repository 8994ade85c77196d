"""What a deploy repairs in an unchanged job: failed instances, and those whose token Consul forgot."""

from __future__ import annotations

from typing import Any

import pytest

from stack.cluster.job_health import job_state, repair
from stack.cluster.rollout import Rollout
from stack.config import Stack
from stack.console import StackError

from .cluster import Cluster

STACK = Stack("any", 0)
AGAIN = [("register", "gateway")]


def deployment(status: str, index: int = 42) -> dict[str, object]:
    return {"Status": status, "StatusDescription": "its end", "JobSpecModifyIndex": index, "JobVersion": 3}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(repair, "CONFIRMED_SECONDS", 0.0)
    return Cluster()


@pytest.mark.parametrize(
    ("status", "index", "sent"),
    [("failed", 42, AGAIN), ("successful", 42, []), ("running", 42, []), ("failed", 41, [])],
)
def test_failed_instances_of_the_current_version_are_started_again(
    cluster: Cluster, status: str, index: int, sent: list[tuple[str, str]]
) -> None:
    cluster.add(1, "failed", healthy=False, passing=False)
    cluster.deployments = [deployment(status, index)]
    assert repair.retry_failed(STACK, cluster.clients, "gateway") == (43 if sent else None)
    assert cluster.sent == sent


def test_the_mark_of_a_version_that_was_started_again_is_no_difference_to_its_file(cluster: Cluster) -> None:
    in_file = {"ID": "gateway", "Meta": None, "Count": 2}
    assert repair.with_mark(cluster.clients, in_file) == in_file
    cluster.add(1, "failed", healthy=False, passing=False)
    cluster.deployments = [deployment("failed")]
    repair.retry_failed(STACK, cluster.clients, "gateway")
    registered = cluster.job["Meta"]
    assert list(registered) == ["owner", "retried_at"]
    assert repair.with_mark(cluster.clients, in_file)["Meta"] == {"retried_at": registered["retried_at"]}


def test_a_version_that_became_healthy_after_its_deployment_is_left_alone(cluster: Cluster) -> None:
    for number in (1, 2):
        cluster.add(number)
    cluster.deployments = [deployment("failed")]
    repair.retry_failed(STACK, cluster.clients, "gateway")
    assert cluster.sent == []
    Rollout(STACK, cluster.clients, "gateway").wait(1)


def test_an_earlier_failure_does_not_end_the_wait_of_a_deploy_that_changes_nothing(cluster: Cluster) -> None:
    cluster.deployments = [deployment("failed")]
    with pytest.raises(StackError, match="0 of 2 instances of group api of job gateway run"):
        Rollout(STACK, cluster.clients, "gateway").wait(1)
    with pytest.raises(StackError, match="version 3 of job gateway is not healthy"):
        Rollout(STACK, cluster.clients, "gateway", 42).wait(30)


def test_forgotten_instances_are_replaced_one_after_the_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [cluster.add(number) for number in (1, 2)]
    monkeypatch.setattr(job_state, "forgotten", lambda *_: dict.fromkeys(names, "Consul does not know its token"))
    changes = list(repair.replacements(STACK, cluster.clients, "gateway"))
    assert [change.where for change in changes] == [f"nomad allocation gateway {name[:8]}" for name in names]
    assert changes[0].notes == ("job gateway, allocation 00000001: Consul does not know its token",)
    for change in changes:
        change.apply()
    assert cluster.sent == [("stop", name) for name in names]


@pytest.mark.parametrize(
    ("fields", "replaced"),
    [
        ({}, True),
        ({"DesiredStatus": "stop"}, False),  # it drains, so Nomad has removed its services
        ({"ClientStatus": "pending"}, False),
        ({"DeploymentStatus": None}, False),  # it starts, and may not have registered yet
    ],
)
def test_a_healthy_instance_that_consul_lists_no_more_is_replaced(
    cluster: Cluster, fields: dict[str, Any], replaced: bool
) -> None:
    cluster.add(1)
    cluster.add(2, passing=False)
    cluster.allocations[-1].update(fields)
    changes = list(repair.replacements(STACK, cluster.clients, "gateway"))
    assert [change.where for change in changes] == (["nomad allocation gateway 00000002"] if replaced else [])


def test_an_instance_that_is_only_restarted_is_not_replaced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    name = cluster.add(1, passing=False)
    monkeypatch.setattr(repair.time, "sleep", lambda _: cluster.passing.add(name))
    assert list(repair.replacements(STACK, cluster.clients, "gateway")) == []


def test_nothing_is_stopped_while_no_node_could_start_another(cluster: Cluster) -> None:
    cluster.add(1, passing=False)
    assert list(repair.replacements(STACK, cluster.clients, "gateway"))
    cluster.eligible = False
    assert list(repair.replacements(STACK, cluster.clients, "gateway")) == []
