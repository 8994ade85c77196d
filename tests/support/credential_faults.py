"""Faults that end credentials: Vault is unavailable for longer than a token lives, or the power fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually

from stack.config import ROOT
from stack.machine import processes

TOKEN_SECONDS = 6
_ROLES = ROOT / "vault" / "auth" / "jwt-nomad" / "role"
_JOBS = ("gateway", "order-service", "user-service")


@contextmanager
def short_tokens(running: RunningStack) -> Iterator[None]:
    """Lets the Vault tokens of the services live for six seconds, unless they are renewed."""
    _log_in_again(running, {"token_period": TOKEN_SECONDS})
    try:
        yield
    finally:
        _log_in_again(running, {})


@contextmanager
def failed_power(running: RunningStack) -> Iterator[None]:
    """Kills every process of the stack and drops what it has in memory; a deploy ends the fault."""
    for _ in range(3):
        for pid in processes.belonging(running.stack.state):
            processes.send(pid, signal.SIGKILL)
    eventually("every process is dead", lambda: not processes.belonging(running.stack.state), 10)
    if os.geteuid() == 0:
        for folder in reversed(mounts(running)):
            subprocess.run(["umount", "--lazy", folder], check=True)
    try:
        yield
    finally:
        deploy = run("deploy", seconds=300)
        assert deploy.returncode == 0, deploy.stdout + deploy.stderr


def mounts(running: RunningStack) -> list[str]:
    """The mount points of the stack, in their order."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{running.stack.state}/")]


def _log_in_again(running: RunningStack, changes: dict[str, Any]) -> None:
    """Changes the Vault roles of the services, and revokes the tokens that they got by them."""
    vault = running.clients.vault
    for job in _JOBS:
        role = json.loads((_ROLES / f"{job}.json").read_text())
        vault.write_data(f"auth/jwt-nomad/role/{job}", data=role | changes)
    vault.sys.revoke_prefix("auth/jwt-nomad/login")
    running.wait_until_healthy(90)
