"""`logs SERVICE`: what the running instances of a job, or an agent, said last."""

from __future__ import annotations

from collections.abc import Sequence

from nomad.api.exceptions import BaseNomadException, URLNotFoundNomadException

from stack.cluster import nomad
from stack.cluster.agents import daemon, require_running
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say

AGENTS = ("nomad", "consul", "vault")
LINES = 40


def logs(stack: Stack, arguments: Sequence[str]) -> None:
    """Prints the last lines of each instance, under its name."""
    if len(arguments) != 1 or arguments[0] not in {*nomad.names(), *AGENTS}:
        known = ", ".join((*nomad.names(), *AGENTS))
        raise StackError(
            "whose logs?", f"got {' '.join(arguments) or 'nothing'!r}", f"./justw logs NAME, one of: {known}"
        )
    if arguments[0] in AGENTS:
        say(daemon(stack, arguments[0]).log_tail(LINES))
        return
    require_running(stack)
    clients = Clients(stack)
    for alloc in clients.nomad.job.get_allocations(arguments[0]):
        if alloc["ClientStatus"] in {"running", "pending", "failed"}:
            for task in alloc["TaskStates"] or {}:
                _task(clients, alloc["ID"], task, alloc["ClientStatus"])


def _task(clients: Clients, alloc: str, task: str, state: str) -> None:
    """Prints the last lines of both streams."""
    title, said = f"{task} {alloc[:8]} ({state})", False
    for stream in ("stdout", "stderr"):
        try:
            # Nomad counts the offset of a log in bytes from its end.
            text = clients.nomad.client.stream_logs.stream(alloc, task, stream, plain=True, origin="end", offset=12_000)
        except URLNotFoundNomadException:
            continue
        except BaseNomadException as error:
            text = str(error)
        if lines := text.splitlines()[-LINES:]:
            said = True
            say(f"--- {title} {stream}")
            say("\n".join(lines))
    if not said:
        say(f"--- {title} has said nothing")
