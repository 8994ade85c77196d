"""Reads a job from Nomad and Consul: whether it is complete and healthy, and otherwise why not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from stack.cluster.clients import Clients
from stack.cluster.job_health import instances
from stack.cluster.job_health.forgotten_tokens import allocation_of, forgotten
from stack.cluster.job_health.placement import unplaced
from stack.cluster.job_health.problem import Problem
from stack.config import Stack
from stack.machine import ports, processes

Json = dict[str, Any]


class JobState:
    """A job at the time of each call."""

    def __init__(self, stack: Stack, clients: Clients, name: str) -> None:
        self._stack, self._clients, self.name = stack, clients, name
        self._nomad = clients.nomad

    def allocations(self) -> list[Json]:
        """Returns every allocation that Nomad still knows."""
        found: list[Json] = self._nomad.job.get_allocations(self.name)
        return found

    def is_healthy(self, job: Json) -> bool:
        """Returns whether each group runs completely, in this version only, with every check passing in Consul."""
        found = running(self.allocations())
        if any(alloc["JobVersion"] != job["Version"] for alloc in found):
            return False
        return all(self._is_complete(group, found) for group in job["TaskGroups"])

    def _is_complete(self, group: Json, found: list[Json]) -> bool:
        ours = {alloc["ID"] for alloc in found if alloc["TaskGroup"] == group["Name"]}
        return len(ours) >= group["Count"] and all(
            len(ours & self._passing(service["Name"])) >= group["Count"] for service in group["Services"] or []
        )

    def _passing(self, service: str) -> set[str]:
        """Returns the allocations whose instance of a service passes its checks."""
        found = self._clients.consul.health.service(service, passing=True)[1]
        return {allocation for entry in found if (allocation := allocation_of(entry["Service"]["ID"]))}

    def problems(self, job: Json, version: int | None = None) -> list[Problem]:
        """Returns why a version of the job, by default the current one, does not run completely."""
        wanted = job["Version"] if version is None else version
        listed = [alloc for alloc in self.allocations() if alloc["JobVersion"] == wanted]
        found = [*self._unplaced(job), *self._unhealthy(job, [alloc for alloc in listed if _should_run(alloc)])]
        return found or list(self._missing(job, listed))

    def current_problems(self) -> list[Problem]:
        """Returns the problems of the current version; none for a healthy job."""
        job = self._nomad.job.get_job(self.name)
        if job["Stop"]:
            return [Problem(f"job {self.name} was stopped", "./justw deploy", lasting=True)]
        found = [
            Problem(f"{self.name}, allocation {allocation[:8]}: {reason}", "./justw deploy", lasting=True)
            for allocation, reason in self.forgotten(job).items()
        ]
        return found or ([] if self.is_healthy(job) else self.problems(job))

    def forgotten(self, job: Json) -> dict[str, str]:
        """Returns the running allocations that Consul forgot, each with the reason: Nomad must start others."""
        found = [alloc for alloc in running(self.allocations()) if _should_run(alloc)]
        listed, with_services = self._entries(job), {group["Name"] for group in job["TaskGroups"] if group["Services"]}
        # They were healthy once, so Consul has listed them.
        gone = {
            alloc["ID"]: "Consul lists none of its services and refuses to register them"
            for alloc in found
            if alloc["ID"] not in listed and alloc["TaskGroup"] in with_services and is_marked_healthy(alloc)
        }
        return gone | forgotten(self._stack, self._clients.consul, {alloc["ID"] for alloc in found})

    def _unplaced(self, job: Json) -> list[Problem]:
        evaluations = self._nomad.job.get_evaluations(self.name)
        if not any(evaluation["Status"] == "blocked" for evaluation in evaluations):
            return []
        nodes = self._nomad.nodes.request(params={"resources": "true"}, method="get").json()
        allocations = self._nomad.allocations.request(params={"resources": "true"}, method="get").json()
        return unplaced(job, evaluations, nodes, allocations)

    def _unhealthy(self, job: Json, allocations: list[Json]) -> Iterator[Problem]:
        entries = self._entries(job)
        for stub in allocations:
            checks = entries.get(stub["ID"])
            if not checks or any(check["Status"] != "passing" for check in checks):
                alloc = self._nomad.allocation.get_allocation(stub["ID"])
                has_services = any(group["Services"] for group in _groups(job, alloc["TaskGroup"]))
                yield from instances.explain(alloc, self._holder(alloc), checks if has_services else [], time.time())

    def _entries(self, job: Json) -> dict[str, list[Json]]:
        """Returns the checks of each allocation that Consul lists for a service of the job."""
        found: dict[str, list[Json]] = {}
        for service in (service for group in job["TaskGroups"] for service in group["Services"] or []):
            for entry in self._clients.consul.health.service(service["Name"])[1]:
                checks = [check for check in entry["Checks"] if check["ServiceID"]]
                found.setdefault(allocation_of(entry["Service"]["ID"]), []).extend(checks)
        return found

    def _holder(self, alloc: Json) -> Any:
        folder = self._stack.state / "nomad" / "data" / "alloc" / alloc["ID"]
        return lambda port: ports.listener(port, except_for=processes.family(processes.below(folder)))

    def _missing(self, job: Json, listed: list[Json]) -> Iterator[Problem]:
        for group in job["TaskGroups"]:
            count = sum(alloc["TaskGroup"] == group["Name"] for alloc in running(listed))
            if count < group["Count"]:
                text = f"{count} of {group['Count']} instances of group {group['Name']} of job {self.name} run"
                yield Problem(text, "./justw deploy")


def running(allocations: list[Json]) -> list[Json]:
    """Returns the allocations that run now."""
    return [alloc for alloc in allocations if alloc["ClientStatus"] == "running"]


def is_marked_healthy(alloc: Json) -> bool:
    """Returns whether Nomad has seen an allocation run and pass its checks for `min_healthy_time`."""
    return bool((alloc["DeploymentStatus"] or {}).get("Healthy"))


def _should_run(alloc: Json) -> bool:
    """Returns whether an allocation neither ends nor was replaced."""
    ends = alloc["DesiredStatus"] != "run" or alloc["ClientStatus"] == "complete" or alloc["NextAllocation"]
    return not ends and not alloc["DesiredTransition"]["Migrate"]


def _groups(job: Json, name: str) -> Iterator[Json]:
    return (group for group in job["TaskGroups"] if group["Name"] == name)
