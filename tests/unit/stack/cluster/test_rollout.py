"""A rollout: what ends the wait, what is reported meanwhile, and whose log lines an error shows."""

from __future__ import annotations

from typing import Any

import pytest

from stack.cluster.job_health.problem import Problem
from stack.cluster.rollout import LastingCauses, failed

BLOCKED = Problem("no node can run it", "enable the node", lasting=True)
CHECK = Problem("check 'liveness' fails", "./justw logs edge")


class Watched:
    """Causes that are looked for at each second of a clock."""

    def __init__(self) -> None:
        self.reported: list[str] = []
        self.now = 0.0
        self.causes = LastingCauses(self.reported.append, lambda: self.now)

    def after(self, seconds: int, *found: Problem) -> Problem | None:
        stuck = None
        for _ in range(seconds):
            self.now += 1
            stuck = stuck or self.causes.observe(lambda: list(found))
        return stuck


def test_a_cause_that_waiting_does_not_end_ends_the_wait_within_ten_seconds() -> None:
    watched = Watched()
    assert watched.after(4, BLOCKED) is None
    assert watched.after(6, BLOCKED) == BLOCKED


def test_a_cause_that_may_end_is_reported_once_and_the_wait_goes_on() -> None:
    watched = Watched()
    assert watched.after(30, CHECK) is None
    assert watched.reported == [CHECK.text]


def test_a_cause_that_ends_in_time_is_neither_reported_nor_an_error() -> None:
    watched = Watched()
    for _ in range(5):
        assert watched.after(4, BLOCKED, CHECK) is None
        assert watched.after(1) is None
    assert watched.reported == []


def test_the_last_causes_are_kept_when_the_instance_is_removed() -> None:
    watched = Watched()
    watched.after(2, CHECK)
    watched.after(2)
    assert watched.causes.last == [CHECK]


def alloc(name: str, index: int, desired: str, client: str, healthy: bool | None) -> dict[str, Any]:
    health = None if healthy is None else {"Healthy": healthy}
    return {
        "ID": name,
        "CreateIndex": index,
        "DesiredStatus": desired,
        "ClientStatus": client,
        "DeploymentStatus": health,
    }


@pytest.mark.parametrize(
    ("allocations", "shown"),
    [
        ([alloc("dead", 1, "stop", "failed", False), alloc("new", 2, "run", "running", False)], ["new"]),
        ([alloc("good", 1, "run", "running", True), alloc("bad", 2, "run", "pending", None)], ["bad"]),
        ([alloc("old", 1, "stop", "failed", False), alloc("canary", 2, "stop", "complete", False)], ["canary"]),
        ([alloc("gone", 1, "stop", "complete", True)], []),
    ],
)
def test_log_lines_are_those_of_the_allocation_that_failed(allocations: list[dict[str, Any]], shown: list[str]) -> None:
    assert [found["ID"] for found in failed(allocations)] == shown
