"""`logs NAME`: prints the last log lines of the instances of a job, or of an agent."""

from __future__ import annotations

from nomad.api.exceptions import BaseNomadException, URLNotFoundNomadException

from stack.cluster import nomad
from stack.cluster.agents import daemon, require_running
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say

AGENTS = ("nomad", "consul", "vault")
LINES = 40


def names() -> list[str]:
    """Returns the name of every job and agent."""
    return [*nomad.names(), *AGENTS]


def logs(stack: Stack, name: str) -> None:
    """Prints the last lines of each instance, under its name."""
    if name not in names():
        raise StackError(f"unknown name {name!r}", "it is neither a job nor an agent", _usage())
    if name in AGENTS:
        say(daemon(stack, name).log_tail(LINES))
        return
    require_running(stack)
    clients = Clients(stack)
    for alloc in clients.nomad.job.get_allocations(name):
        if alloc["ClientStatus"] in {"running", "pending", "failed"}:
            for task in alloc["TaskStates"] or {}:
                _task(clients, alloc["ID"], task, alloc["ClientStatus"])


def _usage() -> str:
    return f"./justw logs NAME, one of: {', '.join(names())}"


def _task(clients: Clients, alloc: str, task: str, state: str) -> None:
    """Prints the last lines of both streams."""
    title, printed = f"{task} {alloc[:8]} ({state})", False
    for stream in ("stdout", "stderr"):
        try:
            # Nomad counts the offset of a log in bytes from its end.
            text = clients.nomad.client.stream_logs.stream(alloc, task, stream, plain=True, origin="end", offset=12_000)
        except URLNotFoundNomadException:
            continue
        except BaseNomadException as error:
            text = str(error)
        if lines := text.splitlines()[-LINES:]:
            printed = True
            say(f"--- {title} {stream}")
            say("\n".join(lines))
    if not printed:
        say(f"--- {title} has logged nothing")
