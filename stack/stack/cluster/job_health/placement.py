"""Explains why Nomad finds no node for a group of a job: reads its blocked evaluation and the nodes.

A blocked evaluation names for each group how many nodes were excluded, and by what:
https://developer.hashicorp.com/nomad/docs/concepts/scheduling/placement
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stack.cluster.job_health.problem import ENVIRONMENT, Problem

Json = dict[str, Any]

_UNITS = {"memory": "MB", "cpu": "MHz", "disk": "MB"}
_LIVE = {"running", "pending"}


def unplaced(
    job: Json, evaluations: Iterable[Json], nodes: Sequence[Json], allocations: Sequence[Json]
) -> list[Problem]:
    """Returns a problem for each group that the newest blocked evaluation of a job could not place.

    `nodes` and `allocations` are those of the whole cluster, listed with their resources. A node that is not ready
    is no lasting cause: it may have just started.
    """
    blocked = [evaluation for evaluation in evaluations if evaluation["Status"] == "blocked"]
    if not blocked:
        return []
    failed: dict[str, Json] = max(blocked, key=lambda found: int(found["CreateIndex"]))["FailedTGAllocs"] or {}
    groups = {group["Name"]: group for group in job["TaskGroups"]}
    lasting = all(node["Status"] == "ready" for node in nodes)
    return [
        Problem(f"no node can run group {name} of job {job['ID']}: {cause}", remedy, lasting)
        for name, metric in failed.items()
        for cause, remedy in _causes(metric, groups.get(name), nodes, allocations)
    ]


def _causes(
    metric: Json, group: Json | None, nodes: Sequence[Json], allocations: Sequence[Json]
) -> Iterator[tuple[str, str]]:
    closed = [node for node in nodes if not _is_open(node)]
    if closed and not metric["NodesEvaluated"]:
        yield from map(_closed, closed)
    elif not metric["NodesEvaluated"]:
        yield "Nomad has no node in the datacenter and node pool of the job", "./justw logs nomad"
    for constraint, count in (metric["ConstraintFiltered"] or {}).items():
        yield f"{constraint} excludes {_nodes(count)}", "compare the constraint with `nomad node status -verbose`"
    for dimension, count in (metric["DimensionExhausted"] or {}).items():
        yield _exhausted(dimension, count, group, [node for node in nodes if _is_open(node)], allocations)
    for quota in metric["QuotaExhausted"] or []:
        yield f"quota {quota} is exhausted", "raise the quota, or stop another job"


def _is_open(node: Json) -> bool:
    return bool(node["Status"] == "ready" and node["SchedulingEligibility"] == "eligible" and not node["Drain"])


def _closed(node: Json) -> tuple[str, str]:
    if node["Status"] != "ready":
        return f"node {node['Name']} is {node['Status']}", "./justw logs nomad"
    enable = f"{ENVIRONMENT}; nomad node eligibility -enable {node['ID']}"
    if node["Drain"]:
        disable = f"{ENVIRONMENT}; nomad node drain -disable {node['ID']}"
        return f"node {node['Name']} is being drained", disable
    drained = (node.get("LastDrain") or {}).get("Status") == "complete"
    state = "was drained and is not eligible" if drained else "is not eligible"
    return f"node {node['Name']} {state} for new work", enable


def _exhausted(
    dimension: str, count: int, group: Json | None, nodes: Sequence[Json], allocations: Sequence[Json]
) -> tuple[str, str]:
    unit = _UNITS.get(dimension)
    if unit is None:
        return f"{dimension} on {_nodes(count)}", f"{ENVIRONMENT}; nomad job status shows which job uses it"
    needed = f", an instance needs {_needed(group)[dimension]} {unit}" if group else ""
    rooms = [
        f"node {node['Name']} has {_total(node)[dimension]} {unit} as Nomad counts, "
        f"{_reserved(node, allocations)[dimension]} are reserved"
        for node in nodes
    ]
    text = "; ".join([f"{dimension} is exhausted on {_nodes(count)}{needed}", *rooms])
    return text, f"stop another job, or use a machine with more {dimension}: README.md has the requirements"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _needed(group: Json) -> dict[str, int]:
    tasks = [task["Resources"] for task in group["Tasks"]]
    return {
        "memory": sum(task["MemoryMB"] for task in tasks),
        "cpu": sum(task["CPU"] for task in tasks),
        "disk": group["EphemeralDisk"]["SizeMB"],
    }


def _total(node: Json) -> dict[str, int]:
    here, kept = node["NodeResources"], node["ReservedResources"] or {}
    return {
        "memory": here["Memory"]["MemoryMB"] - kept.get("Memory", {}).get("MemoryMB", 0),
        "cpu": here["Cpu"]["CpuShares"] - kept.get("Cpu", {}).get("CpuShares", 0),
        "disk": here["Disk"]["DiskMB"] - kept.get("Disk", {}).get("DiskMB", 0),
    }


def _reserved(node: Json, allocations: Sequence[Json]) -> dict[str, int]:
    here = [
        alloc["AllocatedResources"]
        for alloc in allocations
        if alloc["NodeID"] == node["ID"] and alloc["ClientStatus"] in _LIVE and alloc.get("AllocatedResources")
    ]
    tasks = [task for found in here for task in found["Tasks"].values()]
    return {
        "memory": sum(task["Memory"]["MemoryMB"] for task in tasks),
        "cpu": sum(task["Cpu"]["CpuShares"] for task in tasks),
        "disk": sum(found["Shared"]["DiskMB"] for found in here),
    }
