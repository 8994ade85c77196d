"""Processes that belong to a folder, and the memory that they use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stack.machine.processes import belonging, below, end, memory, named, pause

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
EIGHT_BUSY_THREADS = """
import hashlib, threading
def work():
    while True:
        hashlib.sha256(bytes(5_000_000))  # without the interpreter's lock
for _ in range(8):
    threading.Thread(target=work).start()
print(flush=True)
"""


def test_processes_that_work_in_a_folder_are_found(tmp_path: Path) -> None:
    child = subprocess.Popen(SLEEPER, cwd=tmp_path)
    try:
        until = time.monotonic() + 5
        while child.pid not in below(tmp_path):
            assert time.monotonic() < until
        assert child.pid not in below(tmp_path / "elsewhere")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_a_process_that_sees_the_folder_at_another_path_is_found(tmp_path: Path) -> None:
    rights = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    namespace = ("unshare", "--mount", *rights, "sh", "-c")
    if subprocess.run((*namespace, "mount --bind /mnt /mnt"), check=False).returncode:
        pytest.skip("this machine allows no mount namespace")
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    script = 'mount --bind "$FOLDER" /mnt; cd /mnt/data; unset FOLDER; exec sleep 60'
    child = subprocess.Popen((*namespace, script), cwd="/", env=os.environ | {"FOLDER": str(tmp_path / "postgres")})
    try:
        until = time.monotonic() + 5
        while child.pid not in below(tmp_path):
            assert time.monotonic() < until
        assert child.pid not in below(tmp_path / "elsewhere")
        assert child.pid in belonging(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_a_process_with_a_terminal_belongs_to_a_user(tmp_path: Path) -> None:
    master, terminal = os.openpty()
    child = subprocess.Popen(
        ("setsid", "--ctty", *SLEEPER), cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        stat = Path(f"/proc/{child.pid}/stat")
        until = time.monotonic() + 5
        while stat.read_text().rpartition(")")[2].split()[4] == "0":
            assert time.monotonic() < until
        assert child.pid not in below(tmp_path)
    finally:
        child.kill()
        child.wait()
        os.close(master)


def test_memory_counts_the_processes_of_a_folder_and_their_children(tmp_path: Path) -> None:
    # The child leaves the folder; it counts because its parent stays.
    parent = subprocess.Popen(("sh", "-c", "(cd / && exec sleep 60); true"), cwd=tmp_path)
    try:
        until = time.monotonic() + 5
        while memory(tmp_path)[1] != 2:
            assert time.monotonic() < until
    finally:
        end(_children(parent.pid), timeout=5)
        parent.wait()
    assert memory(tmp_path) == (0, 0)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_processes_are_found_by_the_name_of_their_program() -> None:
    child = subprocess.Popen(("sleep", "60"))
    try:
        assert child.pid in named("sleep")
        assert child.pid not in named("nomad")
    finally:
        child.kill()
        child.wait()


def test_no_thread_of_a_paused_process_runs() -> None:
    busy = subprocess.Popen((sys.executable, "-c", EIGHT_BUSY_THREADS), stdout=subprocess.PIPE)
    try:
        assert busy.stdout
        assert busy.stdout.readline()
        for _ in range(20):
            pause(busy.pid)
            stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{busy.pid}/task").iterdir()]
            assert {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}
            assert len(stats) == 9
            busy.send_signal(signal.SIGCONT)
    finally:
        busy.kill()
        busy.communicate()
