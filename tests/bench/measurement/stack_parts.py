"""The processes of a running stack by part: which of them is the edge, the gateway, Postgres, an agent."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from bench.measurement.cpu import cpu_seconds_each

from stack.machine.processes import belonging, command_line

# The first pattern that matches a command line names its part.
PATTERNS = {
    "order-service worker": r"order-service\.pyz worker",
    "order-service": r"order-service\.pyz",
    "user-service": r"user-service\.pyz",
    "gateway": r"gateway\.pyz",
    "edge": r"drained_envoy|/envoy ",
    "Postgres": r"^postgres|/postgres ",
    "telemetry": r"otel-desktop-viewer",
    "artifacts": r"artifacts\.py",
    "Consul": r"(^|/)consul ",
    "OpenBao": r"(^|/)bao ",
    "Nomad": r"(^|/)nomad ",
}
OTHER = "other"


def part_of(command: str) -> str:
    """Returns the name of the part that a command line belongs to."""
    return next((name for name, pattern in PATTERNS.items() if re.search(pattern, command)), OTHER)


def parts(state: Path) -> dict[str, list[int]]:
    """Returns the processes of the stack with this folder, by part."""
    found: dict[str, list[int]] = defaultdict(list)
    for pid in sorted(belonging(state)):
        if command := command_line(pid):
            found[part_of(command)].append(pid)
    return dict(found)


class PartClock:
    """Adds up the CPU time of each part. Of a process that ends, the time after the last update is lost."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._first = self._read()
        self._last = dict(self._first)

    def _read(self) -> dict[tuple[str, int], float]:
        return {
            (name, pid): seconds
            for name, pids in parts(self._state).items()
            for pid, seconds in cpu_seconds_each(pids).items()
        }

    def update(self) -> None:
        """Reads all clocks; call it again and again where processes may end."""
        self._last |= self._read()

    def used(self) -> Mapping[str, float]:
        """Returns the CPU seconds of each part since the start."""
        self.update()
        total: dict[str, float] = defaultdict(float)
        for (name, pid), seconds in self._last.items():
            total[name] += seconds - self._first.get((name, pid), 0.0)
        return dict(total)
