"""`down` keeps all that was written, `destroy` leaves nothing, with Nomad killed before it.

It runs after all other tests that need a stack (tests/conftest.py), because it destroys the stack.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from support.operator_commands import run, stack_in_a_free_slot
from support.stack_under_test import RunningStack
from support.traffic.api_user import ApiUser, register

from stack.cluster.clients import Clients
from stack.config import LAST_SLOT, Stack
from stack.machine import processes
from stack.machine.ports import listening

NAME = "gone"
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def stack(running: RunningStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """The stack under test if `./justw test` destroys it anyway; otherwise a second stack, deployed for this test."""
    if os.environ.get("WAYPOST_DISPOSABLE"):
        running.wait_until_healthy()
        yield running.stack
        return
    monkeypatch.setenv("WAYPOST_STACK", NAME)
    monkeypatch.setenv("WAYPOST_SLOT", str(LAST_SLOT))
    _succeeds("destroy")  # what a killed run of this test has left
    free = stack_in_a_free_slot(NAME)
    if free is None:
        pytest.skip("every slot is taken by another stack")
    monkeypatch.setenv("WAYPOST_SLOT", str(free.slot))
    try:
        _succeeds("deploy")
        yield free
    finally:
        _succeeds("destroy")


@pytest.mark.timeout(400)
def test_down_keeps_what_was_written_and_destroy_leaves_nothing_even_without_nomad(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url("gateway"), timeout=15) as http:
        user = register(http)
        order = user.settled(user.place().raise_for_status().json()["id"])
        _edit_credit(stack, 4321)
        _secrets(stack).create_or_update_secret(path="kept", secret={"word": "saffron"})
        _succeeds("down")
        _succeeds("deploy")
        _is_kept(stack, replace(user, http=http), order)
    found = Remains(stack)
    os.kill(int((stack.logs / "nomad.pid").read_text().split()[0]), signal.SIGKILL)
    _succeeds("destroy")
    found.require_none()


def _is_kept(stack: Stack, user: ApiUser, order: dict[str, object]) -> None:
    session = user.http.post("/v1/sessions", json={"email": user.email, "password": user.password})
    again = replace(user, token=session.raise_for_status().json()["access_token"])
    assert again.order(str(order["id"])) == order
    assert register(user.http).credit() == 4321
    assert _secrets(stack).read_secret_version(path="kept", raise_on_deleted_version=True)["data"]["data"] == {
        "word": "saffron"
    }


def _edit_credit(stack: Stack, credit: int) -> None:
    kv = Clients(stack).consul.kv
    entry = kv.get("config/user-service")[1]
    edited = json.loads(entry["Value"]) | {"initial_credit": credit}
    assert kv.put("config/user-service", json.dumps(edited), flags=entry["Flags"])


def _secrets(stack: Stack):  # type: ignore[no-untyped-def]
    return Clients(stack).vault.secrets.kv.v2


class Remains:
    """What a running stack has on the machine, found by other means than those of `destroy`."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        found = {pid: processes.start_time(pid) for pid in _naming(stack.state)}
        self.processes = {pid: started for pid, started in found.items() if started}  # the others have ended meanwhile
        self.memory = {Path(file) for pid in self.processes for file in _shared_memory(pid)}
        self.allocations = {folder.name for folder in (stack.state / "nomad" / "data" / "alloc").iterdir()}
        postmaster = int((stack.state / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        assert postmaster in self.processes
        assert self.memory
        assert self.ports()

    def require_none(self) -> None:
        alive = [pid for pid, started in self.processes.items() if processes.start_time(pid) == started]
        assert (alive, _naming(self.stack.state)) == ([], [])
        assert self.ports() == []
        assert f"{self.stack.state}/" not in Path("/proc/mounts").read_text()
        assert not self.stack.state.exists()
        assert not self.stack.lock.exists()
        assert [file for file in self.memory if file.exists()] == []
        groups = [*CGROUPS.glob("*/nomad/*"), *CGROUPS.glob("nomad.slice/*/*")]
        assert [group for group in groups if group.name.partition(".")[0] in self.allocations] == []

    def ports(self) -> list[int]:
        first, last = self.stack.dynamic_ports
        own = {*self.stack.ports().values(), *range(first, last + 1)}
        return sorted(listening() & own)


def _naming(folder: Path) -> list[int]:
    """Every process with the folder in its arguments or environment, and all their descendants."""
    named = [pid for pid in psutil.pids() if f"{folder}/" in _read(pid, "cmdline") + _read(pid, "environ")]
    return sorted(processes.family(named))


def _shared_memory(pid: int) -> set[str]:
    return {line.split()[-1] for line in _read(pid, "maps").splitlines() if "/dev/shm/PostgreSQL" in line}


def _read(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except OSError:
        return ""


def _succeeds(command: str) -> None:
    done = run(command, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
