"""How a version of a job comes out: alone and passing its checks, or taken back, and then its last words are told.

Invariant: what is waited for is the version that was asked for; a return to an older one is no success.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from nomad.api.exceptions import BaseNomadException, URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.console import StackError

# The events of a task that say why it does not run; others only say that it is being started or stopped.
_TELLING = {"Driver Failure", "Failed Artifact Download", "Failed Validation", "Setup Failure", "Terminated"}
_ENDED = {"successful", "failed", "cancelled"}
_ALLOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LINES = 6
_LONGEST_LINE = 300


class Rollout:
    """One version of a job: the one registered with `index` (its JobModifyIndex), or whichever is there now."""

    def __init__(self, clients: Clients, name: str, index: int | None = None) -> None:
        self._clients, self._name, self._index = clients, name, index
        self._job = clients.nomad.job

    def wait(self, seconds: float) -> None:
        """Returns once the version runs alone and passes its checks; raises StackError otherwise."""
        until = time.monotonic() + seconds
        while True:
            state, why, version = self._state()
            if state == "healthy":
                return
            if state == "failed" or time.monotonic() > until:
                said = "\n".join([why, *self._last_words(version)])
                raise StackError(
                    f"version {version} of job {self._name} is not healthy", said, f"./justw logs {self._name}"
                )
            time.sleep(0.25)

    def _state(self) -> tuple[str, str, int]:
        try:
            job = self._job.get_job(self._name)
        except URLNotFoundNomadException:
            return "waiting", "Nomad does not know the job", 0
        index = self._index or job["JobModifyIndex"]
        deployment = self._deployment(index)
        under_way = deployment is not None and deployment["Status"] not in _ENDED
        if job["JobModifyIndex"] == index and not under_way and self._serves(job):
            return "healthy", "", job["Version"]
        if deployment is None:
            return "waiting", "its instances do not all run and pass their checks", job["Version"]
        state = "failed" if deployment["Status"] in {"failed", "cancelled"} else "waiting"
        return state, deployment["StatusDescription"], deployment["JobVersion"]

    def _deployment(self, index: int) -> dict[str, Any] | None:
        """How this version is being brought out: a return to an older one is a deployment of its own."""
        found: list[dict[str, Any]] = self._job.get_deployments(self._name)
        return next((deployment for deployment in found if deployment["JobSpecModifyIndex"] == index), None)

    def _serves(self, job: dict[str, Any]) -> bool:
        """Whether each group runs in this version only, as often as it asks for, with every check passing in Consul."""
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
        """The allocations whose instance of a service passes its checks; its id holds theirs."""
        found = self._clients.consul.health.service(service, passing=True)[1]
        return {match[0] for entry in found if (match := _ALLOCATION.search(entry["Service"]["ID"]))}

    def _last_words(self, version: int) -> list[str]:
        """How the tasks of a version ended, if they did, and the last lines they wrote; each once."""
        allocs = [alloc for alloc in self._allocations() if alloc["JobVersion"] == version]
        words = dict.fromkeys(word for alloc in allocs for word in self._words(alloc))
        return list(words) or ["no task has said anything"]

    def _words(self, alloc: dict[str, Any]) -> Iterator[str]:
        for task, state in (alloc["TaskStates"] or {}).items():
            told = [event for event in state["Events"] or [] if event["Type"] in _TELLING]
            words = [told[-1]["DisplayMessage"]] if told else []
            for stream in ("stderr", "stdout"):
                words += self._log(alloc["ID"], task, stream)
            yield from (f"{task}: {word[:_LONGEST_LINE]}" for word in words)

    def _log(self, alloc: str, task: str, stream: str) -> list[str]:
        try:
            read = self._clients.nomad.client.stream_logs.stream
            text: str = read(alloc, task, stream, plain=True, origin="end", offset=2_000)
        except BaseNomadException:
            return []  # it never began, or Nomad no longer has it
        return text.splitlines()[-_LINES:]

    def _allocations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._job.get_allocations(self._name)
        return found
