"""`down` stops everything and keeps the data; `destroy` also removes every process, port, mount and file."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import requests
from nomad.api.exceptions import BaseNomadException

from stack.cluster import agents, nomad
from stack.cluster.clients import Clients
from stack.commands.chaos import end_before_teardown
from stack.config import Stack
from stack.console import StackError, say, step
from stack.machine import cgroups, processes
from stack.machine.lock import WAITING, exclusive


def down(stack: Stack) -> None:
    """Stops everything; waits for a running deploy."""
    with exclusive(stack.lock, WAITING):
        _down(stack)


def _down(stack: Stack) -> None:
    """Ends every fault, then the jobs in reverse order, then the agents, then the remaining processes."""
    end_before_teardown(stack)
    if _nomad_answers(stack):
        _stop_jobs(stack)
    for name in reversed(agents.NAMES):
        with step(f"agent {name}") as now:
            now.result = "stopped" if agents.daemon(stack, name).stop() else "was not running"
    _end_leftovers(stack)
    _unmount(stack.state)
    cgroups.remove([folder.name for folder in (stack.state / "nomad" / "data" / "alloc").glob("*")])
    say(f"stack {stack.name!r} is down; its data is in {stack.state}")


def destroy(stack: Stack) -> None:
    """Stops everything and removes its data; waits for a running deploy."""
    with exclusive(stack.lock, WAITING):
        _down(stack)
        if stack.state.exists():
            shutil.rmtree(stack.state)
        stack.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another stack, or a command that waited, still needs it
        stack.state.parent.rmdir()
    say(f"stack {stack.name!r} is removed with its data")


def _nomad_answers(stack: Stack) -> bool:
    """Returns whether this stack's own Nomad answers: another stack may use its ports."""
    if agents.daemon(stack, "nomad").pid() is None:
        return False
    try:
        return httpx.get(f"{stack.url('nomad')}/v1/status/leader", timeout=2).is_success
    except httpx.HTTPError:
        return False


def _stop_jobs(stack: Stack) -> None:
    """Stops the jobs of a stage in parallel; the tasks of a job that Nomad cannot stop are ended as processes later."""
    clients = Clients(stack)
    for stage in reversed(nomad.stages()):
        with step(f"job {', '.join(stage)}") as now, ThreadPoolExecutor() as pool:
            failed = [error for error in pool.map(partial(_stop_job, clients), stage) if error]
            if failed:
                now.result = "failed in Nomad"
        for error in failed:
            say(f"    {error}; continues without Nomad")


def _stop_job(clients: Clients, name: str) -> Exception | None:
    try:
        nomad.stop(clients, name)
    except (StackError, BaseNomadException, requests.RequestException) as error:
        return error
    return None


def _end_leftovers(stack: Stack) -> None:
    """Ends the remaining processes; raises StackError if one does not end, since its data would be removed."""
    left = processes.belonging(stack.state)
    if left:
        with step(f"{len(left)} remaining processes"):
            processes.end(sorted(left), timeout=15)
    alive = sorted(processes.belonging(stack.state))
    if alive:
        raise StackError(
            f"stack {stack.name!r} did not stop",
            f"processes {', '.join(map(str, alive))} still run",
            "end them, then run the same command again",
        )


def _unmount(folder: Path) -> None:
    """Unmounts the file systems below a folder: Nomad as root keeps the secrets of tasks in memory."""
    points = [_unescaped(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)


def _unescaped(path: str) -> str:
    """Returns a path without the octal escapes that proc(5) uses for white space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
