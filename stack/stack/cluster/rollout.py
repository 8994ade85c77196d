"""Waits until a version of a job is healthy: only this version runs, and its checks pass.

A version that Nomad rolls back is a failure, even if the older version is healthy. A cause that waiting does not end
is a failure after a few seconds; any other cause is reported meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from nomad.api.exceptions import URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.cluster.job_health import log_lines
from stack.cluster.job_health.job_state import JobState, is_marked_healthy
from stack.cluster.job_health.problem import Problem
from stack.config import Stack
from stack.console import StackError
from stack.waiting import poll

_ENDED = {"successful", "failed", "cancelled"}
# A cause counts when it has lasted for so long: until then Nomad may still be about to place or start an instance.
_STUCK_SECONDS = 6.0
_REPORTED_SECONDS = 8.0
_INTERVAL_SECONDS = 1.0


class _State(NamedTuple):
    name: str
    why: str
    version: int


class Rollout:
    """One version of a job: the one registered with `index` (its JobModifyIndex), or else the current one.

    `report` receives each cause that has lasted for some seconds. If this deploy did not register the version, an
    earlier failure of its deployment does not count: its instances may have started since then.
    """

    def __init__(
        self,
        stack: Stack,
        clients: Clients,
        name: str,
        index: int | None = None,
        *,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clients, self._name, self._index = clients, name, index
        self._job = clients.nomad.job
        self._state_of_job = JobState(stack, clients, name)
        self._causes = LastingCauses(report)

    def wait(self, seconds: float) -> None:
        """Returns once the version runs alone and passes its checks; raises StackError otherwise."""
        state = poll(self._result, seconds, interval=0.25) or self._state()
        if state.name != "healthy":
            causes = self._causes.last
            lines = [problem.text for problem in causes] or [state.why]
            remedy = next((found.remedy for found in causes if found.lasting), f"./justw logs {self._name}")
            what = f"version {state.version} of job {self._name} is not healthy"
            raise StackError(what, "\n".join([*lines, *self._log_tail(state.version)]), remedy)

    def _result(self) -> _State | None:
        state = self._state()
        if state.name != "waiting":
            return state
        stuck = self._causes.observe(lambda: self._problems(state.version))
        return _State("stuck", stuck.text, state.version) if stuck else None

    def _state(self) -> _State:
        try:
            job = self._job.get_job(self._name)
        except URLNotFoundNomadException:
            return _State("waiting", "Nomad does not know the job", 0)
        index = self._index or job["JobModifyIndex"]
        deployment = self._deployment(index)
        in_progress = deployment is not None and deployment["Status"] not in _ENDED
        if job["JobModifyIndex"] == index and not in_progress and self._state_of_job.is_healthy(job):
            return _State("healthy", "", job["Version"])
        if deployment is None or self._index is None:
            return _State("waiting", "its instances do not all run and pass their checks", job["Version"])
        state = "failed" if deployment["Status"] in {"failed", "cancelled"} else "waiting"
        return _State(state, deployment["StatusDescription"], deployment["JobVersion"])

    def _deployment(self, index: int) -> dict[str, Any] | None:
        """Returns the deployment of this version; a return to an older one is a deployment of its own."""
        found: list[dict[str, Any]] = self._job.get_deployments(self._name)
        return next((deployment for deployment in found if deployment["JobSpecModifyIndex"] == index), None)

    def _problems(self, version: int) -> list[Problem]:
        try:
            return self._state_of_job.problems(self._job.get_job(self._name), version)
        except URLNotFoundNomadException:
            return []  # the job or an allocation has just been removed

    def _log_tail(self, version: int) -> list[str]:
        """Returns the last log lines of the allocations of a version that failed, not of healthy or replaced ones."""
        listed = [alloc for alloc in self._state_of_job.allocations() if alloc["JobVersion"] == version]
        lines = dict.fromkeys(line for alloc in failed(listed) for line in log_lines.tail(self._clients.nomad, alloc))
        return list(lines)


class LastingCauses:
    """Problems seen while waiting: reports each once when it has lasted, and returns one that waiting does not end."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._report, self._clock = report, clock
        self._since: dict[Problem, float] = {}
        self._reported: set[str] = set()
        self._next = 0.0
        self.last: list[Problem] = []
        """The problems that were found last; kept when an instance is removed together with its problems."""

    def observe(self, find: Callable[[], list[Problem]]) -> Problem | None:
        """Looks for problems at most once a second; returns one that has lasted and that waiting does not end."""
        now = self._clock()
        if now < self._next:
            return None
        self._next = now + _INTERVAL_SECONDS
        found = find()
        self.last = found or self.last
        self._since = {problem: self._since.get(problem, now) for problem in found}
        for text in (problem.text for problem in self._lasted(now, _REPORTED_SECONDS)):
            if text not in self._reported:
                self._reported.add(text)
                self._report(text)
        return next((problem for problem in self._lasted(now, _STUCK_SECONDS) if problem.lasting), None)

    def _lasted(self, now: float, seconds: float) -> list[Problem]:
        return [problem for problem, since in self._since.items() if now - since >= seconds]


def failed(allocations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the allocations that should run and are not healthy; else those that ended unhealthy, the newest only."""
    live = [alloc for alloc in allocations if alloc["DesiredStatus"] == "run" and alloc["ClientStatus"] != "complete"]
    unhealthy = [alloc for alloc in live if not is_marked_healthy(alloc) or alloc["ClientStatus"] != "running"]
    if live:
        return unhealthy or live
    ended = [alloc for alloc in allocations if not is_marked_healthy(alloc)]
    return sorted(ended, key=lambda alloc: int(alloc["CreateIndex"]))[-1:]
