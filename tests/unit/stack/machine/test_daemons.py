"""Background processes: known by id and start time, ended politely, never confused with other processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.console import StackError
from stack.machine.daemons import Daemon
from stack.machine.ports import require_free
from stack.machine.processes import belonging, below, end, memory, start_time

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-uc",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)",
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon("sleeper", tmp_path / "logs")
    yield made
    made.stop(timeout=0)


def test_a_started_daemon_is_known_and_a_stopped_one_is_not(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(SLEEPER, tmp_path, {})
    assert daemon.pid() is not None
    assert daemon.stop()
    assert daemon.pid() is None
    assert not daemon.stop()


def test_a_process_id_that_another_process_has_now_is_not_ours(daemon: Daemon) -> None:
    daemon.folder.mkdir()
    (daemon.folder / "sleeper.pid").write_text(f"{os.getpid()} 1\n")
    assert daemon.pid() is None


def test_a_daemon_that_ends_while_starting_is_reported_with_its_log_tail(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start((sys.executable, "-c", "import sys; sys.exit('no licence found')"), tmp_path, {})
    with pytest.raises(StackError, match="no licence found"):
        daemon.wait(lambda: False, seconds=10)


TALKER = (sys.executable, "-uc", "import time; print('a' * 99)\nwhile time.sleep(0.05) is None: print('on and on')")


def test_a_long_log_is_put_aside_and_its_process_goes_on_in_an_empty_one(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.start(TALKER, tmp_path, {})
    daemon.wait(lambda: "on and on" in daemon.log_tail(), seconds=10)
    daemon.shorten_log()
    assert daemon.log.read_text().startswith("aaa")
    monkeypatch.setattr("stack.machine.daemons.LONGEST_LOG", 50)
    daemon.shorten_log()
    daemon.wait(lambda: "on and on" in daemon.log_tail(), seconds=10)
    assert "a" not in daemon.log.read_text().replace("and", "")
    assert "\0" not in daemon.log.read_text()
    assert daemon.log.with_suffix(".log.old").read_text().startswith("aaa")


def test_a_process_that_ignores_sigterm_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(STUBBORN, tmp_path, {})
    daemon.wait(lambda: "deaf" in daemon.log_tail(), seconds=10)
    pid = daemon.pid()
    assert pid is not None
    end([pid], timeout=0.2)
    assert start_time(pid) is None


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


def test_a_taken_port_is_an_error_with_the_name_of_its_process() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} .gateway. is taken: process {os.getpid()}"):
            require_free(port, "gateway")


def test_a_free_port_is_accepted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    require_free(port, "gateway")
