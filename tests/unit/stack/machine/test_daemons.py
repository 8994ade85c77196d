"""Background processes: known by id and start time, ended by signals, never confused with other processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.console import StackError
from stack.machine.daemons import Daemon
from stack.machine.processes import end, start_time

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


def test_a_long_log_becomes_the_old_log_and_the_process_continues_in_an_empty_one(
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
