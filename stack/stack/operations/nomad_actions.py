"""Runs an action of a Nomad job in a running instance, with that instance's identity.

So an operator needs no database credentials: Nomad controls access to actions, Vault controls access to data.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import IO

from stack.build import tools
from stack.cluster.agents import require_running
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError


def run(
    stack: Stack, job: str, group: str, action: str, output: IO[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs an action of a job in one of its running instances; returns its output and exit code.

    With `output`, standard output is written to this file and not returned.
    """
    require_running(stack)
    clients = Clients(stack)
    program = tools.find("nomad")
    if program is None:
        raise StackError("nomad was not found", "it was not built yet", "./justw deploy")
    where = ["-job", job, "-group", group, "-task", job, "-alloc", _instance(clients, job, group)]
    command = [str(program), "action", *where, "-t=false", "-i=false", action]
    token = clients.credentials.token("nomad-management")
    env = os.environ | {"NOMAD_ADDR": stack.url("nomad"), "NOMAD_TOKEN": token}
    return subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def log_tail(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the last lines that a failed action printed."""
    return "\n".join((done.stderr or done.stdout or "").strip().splitlines()[-3:]) or "it printed nothing"


def _instance(clients: Clients, job: str, group: str) -> str:
    for alloc in _running(clients, job, group):
        return alloc
    raise StackError(f"{job} does not run", f"no instance of its group {group} is running", "./justw status")


def _running(clients: Clients, job: str, group: str) -> Iterator[str]:
    """Yields running instances, the newest first: it has the artifact of this deploy."""
    found = sorted(clients.nomad.job.get_allocations(job), key=lambda alloc: alloc["CreateIndex"], reverse=True)
    for alloc in found:
        tasks = (alloc["TaskStates"] or {}).values()
        if alloc["TaskGroup"] == group and tasks and all(task["State"] == "running" for task in tasks):
            yield alloc["ID"]
