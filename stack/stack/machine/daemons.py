"""Background processes of a stack: started once, identified by process id and start time, ended by SIGTERM.

After a reboot another process may have the same id, so the start time is compared too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.console import StackError
from stack.machine.processes import end, start_time
from stack.waiting import wait_until

LONGEST_LOG = 16 * 1024 * 1024


@dataclass(frozen=True)
class Daemon:
    """A named background process; its pid file and log are in `folder`."""

    name: str
    folder: Path

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def pid(self) -> int | None:
        """Returns the process id while it runs, else None."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def start(self, command: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        """Starts it in a session of its own, with its output in a new log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{child.pid} {start_time(child.pid)}\n")

    def stop(self, timeout: float = 20) -> bool:
        """Ends it with SIGTERM, after `timeout` seconds with SIGKILL; returns False if it did not run."""
        pid = self.pid()
        if pid is not None:
            end([pid], timeout)
        self._pid_file.unlink(missing_ok=True)
        return pid is not None

    def shorten_log(self) -> None:
        """Moves a long log to the old one; the process continues to append to the same, now empty file."""
        if self.log.exists() and self.log.stat().st_size > LONGEST_LOG:
            shutil.copyfile(self.log, self.log.with_suffix(".log.old"))
            os.truncate(self.log, 0)

    def log_tail(self, lines: int = 8) -> str:
        """Returns the last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n        ".join(text.splitlines()[-lines:])

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Returns once `ready()` is true; raises StackError when the process ends first or `seconds` have passed."""
        wait_until(lambda: self._is_ready(ready), seconds, lambda: self._failure(f"is not ready after {seconds:.0f} s"))

    def _is_ready(self, ready: Callable[[], bool]) -> bool:
        if ready():
            return True
        if self.pid() is None:
            raise self._failure("ended while starting")
        return False

    def _failure(self, what: str) -> StackError:
        return StackError(f"{self.name} {what}", self.log_tail(), f"read {self.log}")
