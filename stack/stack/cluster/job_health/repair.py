"""Repairs an unchanged job whose instances cannot become healthy by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from stack.cluster.clients import Clients
from stack.cluster.job_health.forgotten_tokens import forgotten
from stack.cluster.job_health.job_state import JobState, is_marked_healthy, running
from stack.cluster.planned_changes import Change
from stack.config import Stack
from stack.waiting import poll


def replacements(stack: Stack, clients: Clients, name: str) -> Iterator[Change]:
    """Yields a change for each running allocation of a job whose token Consul does not know: Nomad starts another."""
    if name not in clients.nomad.job or not _has_open_node(clients.nomad):
        return
    allocations = {alloc["ID"] for alloc in running(JobState(stack, clients, name).allocations())}
    for allocation, use in forgotten(stack, clients.consul, allocations).items():
        note = f"Consul does not know the token of allocation {allocation[:8]} of job {name}: {use}"
        where, replace = f"nomad allocation {name} {allocation[:8]}", partial(_replace, clients.nomad, name, allocation)
        yield Change(where, "its token is unknown to Consul", "replaced", replace, (note,))


def retry_failed(stack: Stack, clients: Clients, name: str) -> None:
    """Starts the failed instances of a version that never became healthy; Nomad itself would leave it as it is."""
    job = clients.nomad.job
    wanted = job.get_job(name)
    if JobState(stack, clients, name).is_healthy(wanted):
        return
    index = wanted["JobModifyIndex"]
    deployments = [found for found in job.get_deployments(name) if found["JobSpecModifyIndex"] == index]
    if deployments and deployments[0]["Status"] == "failed":
        job.request(name, "evaluate", json={"EvalOptions": {"ForceReschedule": True}}, method="post")


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
