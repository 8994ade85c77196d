"""`down` ends everything and keeps the data; `destroy` leaves nothing: no process, port, mount or file."""

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
    """Ends everything; waits for a deploy that is under way."""
    with exclusive(stack.lock, WAITING):
        _down(stack)


def _down(stack: Stack) -> None:
    """Ends every fault, then the jobs, last first, then the agents, then whatever of this stack is left."""
    end_before_teardown(stack)
    if _alive(stack):
        _stop_jobs(stack)
    for name in reversed(agents.NAMES):
        with step(f"agent {name}") as now:
            now.result = "stopped" if agents.daemon(stack, name).stop() else "was not running"
    _end_leftovers(stack)
    _unmount(stack.state)
    cgroups.remove([folder.name for folder in (stack.state / "nomad" / "data" / "alloc").glob("*")])
    say(f"stack {stack.name!r} is down; its data is in {stack.state}")


def destroy(stack: Stack) -> None:
    """Ends everything and removes all it kept; waits for a deploy that is under way."""
    with exclusive(stack.lock, WAITING):
        _down(stack)
        if stack.state.exists():
            shutil.rmtree(stack.state)
        stack.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another stack, or a command that waited, still needs it
        stack.state.parent.rmdir()
    say(f"stack {stack.name!r} is gone, its data too")


def _alive(stack: Stack) -> bool:
    """Whether this stack's own Nomad answers: another stack may hold its ports."""
    if agents.daemon(stack, "nomad").pid() is None:
        return False
    try:
        return httpx.get(f"{stack.url('nomad')}/v1/status/leader", timeout=2).is_success
    except httpx.HTTPError:
        return False


def _stop_jobs(stack: Stack) -> None:
    """Ends what Nomad can end, those of a stage at the same time; a job that it cannot ends with what is left over."""
    clients = Clients(stack)
    for stage in reversed(nomad.stages()):
        with step(f"job {', '.join(stage)}") as now, ThreadPoolExecutor() as pool:
            failed = [error for error in pool.map(partial(_stop_job, clients), stage) if error]
            if failed:
                now.result = "not by Nomad"
        for error in failed:
            say(f"    {error}; goes on without Nomad")


def _stop_job(clients: Clients, name: str) -> Exception | None:
    try:
        nomad.stop(clients, name)
    except (StackError, BaseNomadException, requests.RequestException) as error:
        return error
    return None


def _end_leftovers(stack: Stack) -> None:
    """Refuses where a process does not end: nobody's data is removed under it."""
    left = processes.belonging(stack.state)
    if left:
        with step(f"{len(left)} processes left over"):
            processes.end(sorted(left), timeout=15)
    still = sorted(processes.belonging(stack.state))
    if still:
        raise StackError(
            f"stack {stack.name!r} does not end",
            f"processes {', '.join(map(str, still))} are still there",
            "end them, then run the same command again",
        )


def _unmount(folder: Path) -> None:
    """Nomad keeps the secrets of a task in memory file systems when it runs as root."""
    points = [_unescaped(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)


def _unescaped(path: str) -> str:
    """A path as it is: proc(5) writes white space in octal."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
