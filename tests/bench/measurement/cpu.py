"""Reads the CPU time of processes from /proc: user and system time of all their threads, those that ended included."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Returns the CPU time of the processes. Raises FileNotFoundError if one has ended: its time would be missing."""
    return sum(_ticks(pid) for pid in pids) / TICKS_PER_SECOND


def cpu_seconds_each(pids: Iterable[int]) -> dict[int, float]:
    """Returns the CPU time of each process that still runs."""
    found = {}
    for pid in pids:
        try:
            found[pid] = _ticks(pid) / TICKS_PER_SECOND
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _ticks(pid: int) -> int:
    """Returns utime + stime, fields 14 and 15 of proc(5) stat; the name in field 2 may hold spaces and parentheses."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
