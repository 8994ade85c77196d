"""Background processes that a stack owns: started once, known by process id and start time, stopped politely.

A process id alone proves nothing after a reboot; together with the start time of the kernel it names one process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.console import StackError

PROC = Path("/proc")
LONGEST_LOG = 16 * 1024 * 1024


@dataclass(frozen=True)
class Daemon:
    """A named background process; its pid file and log live in `folder`."""

    name: str
    folder: Path

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def pid(self) -> int | None:
        """The process id while it runs, else None."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def start(self, command: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
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
        """Ends it with SIGTERM, after `timeout` seconds with SIGKILL; False if it was not running."""
        pid = self.pid()
        if pid is not None:
            end([pid], timeout)
        self._pid_file.unlink(missing_ok=True)
        return pid is not None

    def shorten_log(self) -> None:
        """Keeps a long log as the old one; the process goes on appending to the same file, which is empty then."""
        if self.log.exists() and self.log.stat().st_size > LONGEST_LOG:
            shutil.copyfile(self.log, self.log.with_suffix(".log.old"))
            os.truncate(self.log, 0)

    def last_words(self, lines: int = 8) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n        ".join(text.splitlines()[-lines:])

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Returns once `ready()` holds; refuses when the process ends first or the time is over."""
        until = time.monotonic() + seconds
        while not ready():
            if self.pid() is None:
                raise StackError(f"{self.name} ended while starting", self.last_words(), f"read {self.log}")
            if time.monotonic() > until:
                raise StackError(
                    f"{self.name} is not ready after {seconds:.0f} s", self.last_words(), f"read {self.log}"
                )
            time.sleep(0.1)


def start_time(pid: int) -> str | None:
    """The kernel's start time of a live process (field 22 of proc(5) stat); None for a dead one or a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def end(pids: Sequence[int], timeout: float) -> None:
    """SIGTERM to all, SIGKILL to those still there after `timeout` seconds."""
    born = {pid: start_time(pid) for pid in pids}
    for sign, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        left = [pid for pid, started in born.items() if started and start_time(pid) == started]
        for pid in left:
            send(pid, sign)
        until = time.monotonic() + patience
        while any(start_time(pid) == born[pid] for pid in left) and time.monotonic() < until:
            _reap()
            time.sleep(0.05)


def send(pid: int, sign: signal.Signals) -> None:
    """Signals a process that may have ended by now."""
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def below(folder: Path) -> list[int]:
    """Every background process that works in `folder` or names it on its command line, this one's parents excepted.

    One with a terminal is somebody's editor, pager or shell.
    """
    mine, places = set(_ancestors()), set(_places(folder))
    return [
        pid
        for pid in _pids()
        if pid not in mine and not _has_terminal(pid) and (_touches(pid, str(folder)) or _stands_in(pid, places))
    ]


def belonging(folder: Path) -> set[int]:
    """Every process that must not outlive `folder`: those below it and all that descend from them."""
    return family(below(folder)) - set(_ancestors())


def named(name: str) -> list[int]:
    """Every process of the machine whose program has this name."""
    return [pid for pid in _pids() if _program(pid) == name]


def memory(folder: Path) -> tuple[int, int]:
    """Mebibytes that the processes of `folder` and their children take, and how many they are.

    Proportional set size: a page that n processes share counts as a part in n for each (proc(5), smaps_rollup).
    """
    found = family(below(folder))
    return sum(_proportional_kib(pid) for pid in found) // 1024, len(found)


def family(pids: Sequence[int]) -> set[int]:
    """These processes and all that descend from them."""
    found = set(pids)
    parents = {pid: _parent(pid) for pid in _pids()}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "comm").read_text().strip()
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _proportional_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        rows = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return 0


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        pid = _parent(pid)


def _has_terminal(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[4] != "0"
    return False


def _touches(pid: int, folder: str) -> bool:
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        here = str((PROC / str(pid) / "cwd").readlink())
    except OSError:
        return False
    return folder + "/" in words.replace("\0", " ") or f"{here}/".startswith(folder + "/")


def _places(folder: Path) -> Iterator[tuple[int, int]]:
    """The folder and what is right below it, as the kernel knows them.

    Postgres under root sees its folder at another path, in a mount namespace of its own.
    """
    with contextlib.suppress(OSError):
        for place in (folder, *folder.iterdir()):
            yield _identity(place)


def _stands_in(pid: int, places: set[tuple[int, int]]) -> bool:
    """Whether one of `places` is the working directory of a process or above it, whatever path leads there."""
    here, below_it = PROC / str(pid) / "cwd", (0, 0)
    with contextlib.suppress(OSError):
        while (found := _identity(here)) != below_it:
            if found in places:
                return True
            here, below_it = here / "..", found
    return False


def _identity(place: Path) -> tuple[int, int]:
    stat = place.stat()
    return stat.st_dev, stat.st_ino


def require_free(port: int, name: str) -> None:
    """Refuses by name when something listens on a loopback port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackError(
                f"port {port} ({name}) is taken",
                f"{_listener(port)} listens on it",
                "stop that program, or deploy beside it: WAYPOST_STACK=second WAYPOST_SLOT=2 ./justw deploy",
            ) from None


def _listener(port: int) -> str:
    inode = next((inode for number, inode in _listening() if number == port), "")
    for pid in _pids():
        if f"socket:[{inode}]" in _links(pid):
            words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            return f"process {pid} ({' '.join(words)[:60].strip()})"
    return "a process of another user"


def _links(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for link in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())


def _listening() -> Iterator[tuple[int, str]]:
    for table in ("tcp", "tcp6"):
        rows = (PROC / "net" / table).read_text().splitlines()[1:] if (PROC / "net" / table).exists() else []
        for row in rows:
            fields = row.split()
            if fields[3] == "0A":
                yield int(fields[1].rpartition(":")[2], 16), fields[9]
