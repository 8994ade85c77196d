"""Finds the processes behind a Consul service: its allocations in Nomad, and the processes in their task folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes


def process_ids(stack: Stack, clients: Clients, service: str) -> list[int]:
    """Returns the process id of each running instance of a service; raises StackError for an unknown service."""
    if service == "postgres":
        return _postmaster(stack)
    folders = _folders(stack, clients, service)
    found = [pid for folder in folders for pid in processes.below(folder) if _works_in(pid, folder)]
    if not found:
        raise StackError(f"no instance of {service} runs", "there is nothing to act on", "./justw status")
    return sorted(found)


def services(clients: Clients) -> set[str]:
    """Returns every service that a job declares."""
    return {name for _, _, names in _groups(clients) for name in names}


def _groups(clients: Clients) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yields each job with a task group and the names of the group's services."""
    for job in nomad.names():
        if job in clients.nomad.job:
            for group in clients.nomad.job.get_job(job)["TaskGroups"]:
                yield job, group, [service["Name"] for service in group["Services"] or []]


def _folders(stack: Stack, clients: Clients, service: str) -> Iterator[Path]:
    known = False
    for job, group, names in _groups(clients):
        if service in names:
            known = True
            for alloc in clients.nomad.job.get_allocations(job):
                if alloc["ClientStatus"] == "running" and alloc["TaskGroup"] == group["Name"]:
                    for task in group["Tasks"]:
                        yield stack.state / "nomad" / "data" / "alloc" / alloc["ID"] / task["Name"]
    if not known:
        raise StackError(
            f"there is no service {service!r}", "no job declares it", f"one of: {', '.join(sorted(services(clients)))}"
        )


def _works_in(pid: int, folder: Path) -> bool:
    """Returns whether a process is the task itself: Nomad's helper processes of a task work in other folders."""
    try:
        return psutil.Process(pid).cwd() == str(folder)
    except psutil.Error:
        return False


def _postmaster(stack: Stack) -> list[int]:
    """Reads the process id that Postgres wrote: as root it works in a mount namespace, at another path."""
    try:
        return [int((stack.state / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])]
    except (FileNotFoundError, IndexError):
        raise StackError("Postgres does not run", "it has no process id", "./justw status") from None
