"""Removes the control groups of tasks that Nomad started as root; a Nomad that was killed leaves them behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from stack.machine import processes

CGROUPS = Path("/sys/fs/cgroup")
# Of cgroups v1 and v2. Every Nomad of the machine has its tasks below these.
_OF_TASKS = ("*/nomad", "nomad.slice/*")
_OF_NOMAD = ("*/nomad/share", "*/nomad/reserve", "*/nomad", "nomad.slice/*.slice", "nomad.slice")


def remove(allocations: Sequence[str], root: Path = CGROUPS) -> None:
    """Removes the groups of these allocations, and Nomad's own once no Nomad is left on the machine."""
    for name in allocations:
        _remove(root, (f"{above}/{name}.*" for above in _OF_TASKS))
    if not processes.named("nomad"):
        _remove(root, _OF_NOMAD)


def _remove(root: Path, patterns: Iterator[str] | Sequence[str]) -> None:
    """Removes what matches; the kernel keeps a group that holds a process or another group."""
    for pattern in patterns:
        for group in root.glob(pattern):
            with contextlib.suppress(OSError):
                group.rmdir()
