"""Repairs an unchanged job whose instances cannot become healthy by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from nomad.api.exceptions import URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.cluster.job_health.job_state import JobState, is_marked_healthy
from stack.cluster.planned_changes import Change
from stack.config import Stack
from stack.waiting import poll

CONFIRMED_SECONDS = 5.0
_RETRIED_AT = "retried_at"


def replacements(stack: Stack, clients: Clients, name: str) -> Iterator[Change]:
    """Yields a change for each running allocation of a job that Consul forgot: Nomad starts another in its place."""
    if name not in clients.nomad.job or not _has_open_node(clients.nomad):
        return
    for allocation, reason in _forgotten(JobState(stack, clients, name), clients.nomad.job.get_job(name)):
        note = f"job {name}, allocation {allocation[:8]}: {reason}"
        where, replace = f"nomad allocation {name} {allocation[:8]}", partial(_replace, clients.nomad, name, allocation)
        yield Change(where, "forgotten by Consul", "replaced", replace, (note,))


def _forgotten(state: JobState, job: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what Consul forgot now and some seconds later: Nomad removes a service while it restarts a task."""
    before = state.forgotten(job)
    if not before:
        return []
    time.sleep(CONFIRMED_SECONDS)
    return [(allocation, reason) for allocation, reason in state.forgotten(job).items() if allocation in before]


def retry_failed(stack: Stack, clients: Clients, name: str) -> int | None:
    """Registers a version that never became healthy again; returns its index, None if that is not needed.

    Nomad starts no instance of a version whose deployment has failed, so this one is another version: it has a mark.
    """
    job = clients.nomad.job
    wanted = job.get_job(name)
    if JobState(stack, clients, name).is_healthy(wanted):
        return None
    index = wanted["JobModifyIndex"]
    deployments = [found for found in job.get_deployments(name) if found["JobSpecModifyIndex"] == index]
    if not deployments or deployments[0]["Status"] != "failed":
        return None
    wanted["Meta"] = (wanted["Meta"] or {}) | {_RETRIED_AT: datetime.now(UTC).isoformat(timespec="seconds")}
    index = job.register_job(name, {"Job": wanted})["JobModifyIndex"]
    return int(index)


def with_mark(clients: Clients, job: dict[str, Any]) -> dict[str, Any]:
    """Returns a job with the mark of its registered version, which is no difference to its file."""
    try:
        registered = clients.nomad.job.get_job(job["ID"])["Meta"] or {}
    except URLNotFoundNomadException:
        return job
    mark = {key: value for key, value in registered.items() if key == _RETRIED_AT}
    return job | {"Meta": (job["Meta"] or {}) | mark} if mark else job


def _has_open_node(nomad: Any) -> bool:
    """Returns whether Nomad may start instances: otherwise a stopped allocation would not be replaced."""
    return any(
        node["Status"] == "ready" and node["SchedulingEligibility"] == "eligible" for node in nomad.nodes.get_nodes()
    )


def _replace(nomad: Any, name: str, allocation: str, seconds: float = 60) -> None:
    """Stops an allocation and waits for the one in its place, so that the next one is replaced after it."""
    known = {alloc["ID"] for alloc in nomad.job.get_allocations(name)}

    def is_replaced() -> bool:
        others = [alloc for alloc in nomad.job.get_allocations(name) if alloc["ID"] not in known]
        return any(map(is_marked_healthy, others))

    nomad.allocation.stop_allocation(allocation)
    poll(is_replaced, seconds, interval=0.5)
