"""The processes behind a Consul service: which allocations of which job, and who works in their task folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes


def process_ids(stack: Stack, clients: Clients, service: str) -> list[int]:
    """The process ids of the running instances of a service, one an instance; refuses an unknown service by name."""
    if service == "postgres":
        return _postmaster(stack)
    found = [pid for folder in _folders(stack, clients, service) for pid in processes.below(folder) if _at(pid, folder)]
    if not found:
        raise StackError(f"no instance of {service} runs", "there is nothing to act on", "./justw status")
    return sorted(found)


def services(clients: Clients) -> set[str]:
    """Every service that a job declares."""
    return {name for _, _, names in _groups(clients) for name in names}


def _groups(clients: Clients) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Job, task group and names of its services."""
    for job in nomad.names():
        if job in clients.nomad.job:
            for group in clients.nomad.job.get_job(job)["TaskGroups"]:
                yield job, group, [service["Name"] for service in group["Services"] or []]


def _folders(stack: Stack, clients: Clients, service: str) -> Iterator[Any]:
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


def _at(pid: int, folder: Any) -> bool:
    """Whether a process is the task itself: the helper that Nomad keeps for it works elsewhere."""
    try:
        return bool((processes.PROC / str(pid) / "cwd").readlink() == folder)
    except OSError:
        return False


def _postmaster(stack: Stack) -> list[int]:
    """Postgres works in its data, and as root in a mount namespace of its own: only it knows its process id."""
    try:
        return [int((stack.state / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])]
    except (FileNotFoundError, IndexError):
        raise StackError("Postgres does not run", "it has no process id", "./justw status") from None
