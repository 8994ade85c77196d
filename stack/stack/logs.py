"""`logs SERVICE`: what the running instances of a job, or an agent, said last."""

from __future__ import annotations

from collections.abc import Sequence

from nomad.api.exceptions import URLNotFoundNomadException

from stack import nomad
from stack.agents import daemon, require_running
from stack.clients import Clients
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
        say(daemon(stack, arguments[0]).last_words(LINES))
        return
    require_running(stack)
    clients = Clients(stack)
    for alloc in clients.nomad.job.get_allocations(arguments[0]):
        if alloc["ClientStatus"] in {"running", "pending", "failed"}:
            for task in alloc["TaskStates"] or {}:
                _task(clients, alloc["ID"], task, alloc["ClientStatus"])


def _task(clients: Clients, alloc: str, task: str, state: str) -> None:
    found = [stream for stream in ("stdout", "stderr") if _stream(clients, alloc, task, stream, state)]
    if not found:
        say(f"--- {task} {alloc[:8]} ({state}) has no log yet")


def _stream(clients: Clients, alloc: str, task: str, stream: str, state: str) -> bool:
    """Whether there is such a file; a task that writes its own log has only one."""
    try:
        # Nomad counts the offset of a log in bytes from its end.
        text = clients.nomad.client.stream_logs.stream(alloc, task, stream, plain=True, origin="end", offset=12_000)
    except URLNotFoundNomadException:
        return False
    lines = text.splitlines()[-LINES:]
    if lines:
        say(f"--- {task} {alloc[:8]} ({state}) {stream}")
        say("\n".join(lines))
    return True
