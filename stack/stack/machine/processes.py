"""Processes of this machine: finds those that belong to a folder, measures their memory, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from stack.waiting import poll

PROC = Path("/proc")


def start_time(pid: int) -> str | None:
    """Returns the kernel's start time of a live process (field 22 of proc(5) stat); None for a dead one or a zombie.

    psutil derives its start time from the wall clock, which may be adjusted; pid files need one that never changes.
    """
    fields = _stat(PROC / str(pid))
    return None if not fields or fields[0] in {"Z", "X"} else fields[19]


def end(pids: Sequence[int], timeout: float) -> None:
    """Sends SIGTERM to all, and SIGKILL to those that still run after `timeout` seconds."""
    started = {pid: start_time(pid) for pid in pids}
    for sign, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        left = [pid for pid, begun in started.items() if begun and start_time(pid) == begun]
        for pid in left:
            send(pid, sign)
        poll(lambda: _have_ended(left, started), seconds, interval=0.05)  # noqa: B023


def _have_ended(pids: Sequence[int], started: dict[int, str | None]) -> bool:
    _reap()
    return all(start_time(pid) != started[pid] for pid in pids)


def send(pid: int, sign: signal.Signals) -> None:
    """Signals a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def pause(pid: int) -> None:
    """Stops a process with SIGSTOP; returns once none of its threads runs, or after a second.

    One thread takes the signal and tells the others. Until it has its turn on a busy machine, the others go on working.
    """
    send(pid, signal.SIGSTOP)
    poll(lambda: all(_is_at_rest(thread) for thread in _threads(pid)), 1.0, interval=0.001)


def _threads(pid: int) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list((PROC / str(pid) / "task").iterdir())
    return []


def _is_at_rest(thread: Path) -> bool:
    return _stat(thread)[:1] in ([], ["T"], ["t"], ["Z"], ["X"])


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def below(folder: Path) -> list[int]:
    """Returns every background process that works in `folder` or names it on its command line.

    The ancestors of this process are left out, and so is every process with a terminal: an editor, a pager, a shell.
    """
    ancestors, folders = _ancestors(), set(_folders(folder))
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.pid not in ancestors
        and not _has_terminal(process.pid)
        and (_names(process.info, str(folder)) or _works_in(process.pid, folders))
    ]


def belonging(folder: Path) -> set[int]:
    """Returns every process that must not outlive `folder`: those below it and all their descendants."""
    return family(below(folder)) - _ancestors()


def named(name: str) -> list[int]:
    """Returns every process of the machine whose program has this name."""
    return [process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == name]


def memory(folder: Path) -> tuple[int, int]:
    """Returns the mebibytes that the processes of `folder` and their descendants use, and their number.

    Proportional set size: a page that n processes share counts as 1/n for each (proc(5), smaps_rollup).
    """
    found = family(below(folder))
    return sum(_proportional_bytes(pid) for pid in found) // 2**20, len(found)


def family(pids: Sequence[int]) -> set[int]:
    """Returns these processes and all their descendants."""
    found = set(pids)
    parents = {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def command_line(pid: int) -> str:
    """Returns the command line of a process; empty once it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline()).strip()
    return ""


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_full_info().pss)
    return 0


def _ancestors() -> set[int]:
    this = psutil.Process()
    return {this.pid, *(parent.pid for parent in this.parents())}


def _has_terminal(pid: int) -> bool:
    """Reads the number: psutil names terminals, and has no name for one of another mount namespace."""
    fields = _stat(PROC / str(pid))
    return bool(fields) and fields[4] != "0"


def _stat(folder: Path) -> list[str]:
    """Returns the fields of proc(5) stat from the third one on; empty for a process or thread that has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _names(info: dict[str, Any], folder: str) -> bool:
    """Returns whether a process works in `folder` or has a path below it on its command line."""
    words = " ".join(info["cmdline"] or [])
    return f"{folder}/" in words or f"{info['cwd']}/".startswith(f"{folder}/")


def _folders(folder: Path) -> Iterator[tuple[int, int]]:
    """Yields the identity of the folder and of everything directly below it.

    Postgres started by root sees its folder at another path, in a mount namespace of its own.
    """
    with contextlib.suppress(OSError):
        for path in (folder, *folder.iterdir()):
            yield _identity(path)


def _works_in(pid: int, folders: set[tuple[int, int]]) -> bool:
    """Returns whether the working directory of a process, or one above it, is one of `folders`, at whatever path."""
    here, child = PROC / str(pid) / "cwd", (0, 0)
    with contextlib.suppress(OSError):
        while (found := _identity(here)) != child:
            if found in folders:
                return True
            here, child = here / "..", found
    return False


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
