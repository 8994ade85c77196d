"""Waits until a version of a job is healthy: only this version runs, and its checks pass.

A version that Nomad rolls back is a failure, reported with the tail of its logs, even if the older version is healthy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nomad.api.exceptions import BaseNomadException, URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.console import StackError
from stack.waiting import poll

# Events of a task with the reason why it does not run; the others report a start or a stop.
_FAILURES = {"Driver Failure", "Failed Artifact Download", "Failed Validation", "Setup Failure", "Terminated"}
_ENDED = {"successful", "failed", "cancelled"}
_ALLOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LINES = 6
_LONGEST_LINE = 300


class Rollout:
    """One version of a job: the one registered with `index` (its JobModifyIndex), or else the current one."""

    def __init__(self, clients: Clients, name: str, index: int | None = None) -> None:
        self._clients, self._name, self._index = clients, name, index
        self._job = clients.nomad.job

    def wait(self, seconds: float) -> None:
        """Returns once the version runs alone and passes its checks; raises StackError otherwise."""
        state, why, version = poll(self._result, seconds, interval=0.25) or self._state()
        if state != "healthy":
            what = f"version {version} of job {self._name} is not healthy"
            raise StackError(what, "\n".join([why, *self._log_tail(version)]), f"./justw logs {self._name}")

    def _result(self) -> tuple[str, str, int] | None:
        state = self._state()
        return None if state[0] == "waiting" else state

    def _state(self) -> tuple[str, str, int]:
        try:
            job = self._job.get_job(self._name)
        except URLNotFoundNomadException:
            return "waiting", "Nomad does not know the job", 0
        index = self._index or job["JobModifyIndex"]
        deployment = self._deployment(index)
        in_progress = deployment is not None and deployment["Status"] not in _ENDED
        if job["JobModifyIndex"] == index and not in_progress and self._is_healthy(job):
            return "healthy", "", job["Version"]
        if deployment is None:
            return "waiting", "its instances do not all run and pass their checks", job["Version"]
        state = "failed" if deployment["Status"] in {"failed", "cancelled"} else "waiting"
        return state, deployment["StatusDescription"], deployment["JobVersion"]

    def _deployment(self, index: int) -> dict[str, Any] | None:
        """Returns the deployment of this version; a return to an older one is a deployment of its own."""
        found: list[dict[str, Any]] = self._job.get_deployments(self._name)
        return next((deployment for deployment in found if deployment["JobSpecModifyIndex"] == index), None)

    def _is_healthy(self, job: dict[str, Any]) -> bool:
        """Returns whether each group runs completely, in this version only, with every check passing in Consul."""
        running = [alloc for alloc in self._allocations() if alloc["ClientStatus"] == "running"]
        if any(alloc["JobVersion"] != job["Version"] for alloc in running):
            return False
        return all(self._is_complete(group, running) for group in job["TaskGroups"])

    def _is_complete(self, group: dict[str, Any], running: list[dict[str, Any]]) -> bool:
        ours = {alloc["ID"] for alloc in running if alloc["TaskGroup"] == group["Name"]}
        return len(ours) >= group["Count"] and all(
            len(ours & self._passing(service["Name"])) >= group["Count"] for service in group["Services"] or []
        )

    def _passing(self, service: str) -> set[str]:
        """Returns the allocations whose instance of a service passes its checks; its id contains theirs."""
        found = self._clients.consul.health.service(service, passing=True)[1]
        return {match[0] for entry in found if (match := _ALLOCATION.search(entry["Service"]["ID"]))}

    def _log_tail(self, version: int) -> list[str]:
        """Returns the reason why tasks of a version ended, and their last log lines, each once."""
        allocs = [alloc for alloc in self._allocations() if alloc["JobVersion"] == version]
        lines = dict.fromkeys(line for alloc in allocs for line in self._lines(alloc))
        return list(lines) or ["no task has logged anything"]

    def _lines(self, alloc: dict[str, Any]) -> Iterator[str]:
        for task, state in (alloc["TaskStates"] or {}).items():
            failures = [event for event in state["Events"] or [] if event["Type"] in _FAILURES]
            lines = [failures[-1]["DisplayMessage"]] if failures else []
            for stream in ("stderr", "stdout"):
                lines += self._log(alloc["ID"], task, stream)
            yield from (f"{task}: {line[:_LONGEST_LINE]}" for line in lines)

    def _log(self, alloc: str, task: str, stream: str) -> list[str]:
        try:
            read = self._clients.nomad.client.stream_logs.stream
            text: str = read(alloc, task, stream, plain=True, origin="end", offset=2_000)
        except BaseNomadException:
            return []  # it never started, or Nomad no longer has its log
        return text.splitlines()[-_LINES:]

    def _allocations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._job.get_allocations(self._name)
        return found
