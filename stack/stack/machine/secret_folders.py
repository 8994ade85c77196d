"""Keeps the secrets of tasks in memory after a loss of power.

Nomad as root mounts a tmpfs on these folders when it starts an allocation, and never again: after a loss of power it
would write tokens into the ordinary folders below. As an ordinary user Nomad mounts nothing; then the secrets are files
that only this user can read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from stack.machine import processes

_NAMES = ("secrets", "private")
# Nomad does not mount a folder that has this file.
_MARKER = ".nomad-mount"  # fragile: nomad-secret-folders
# As Nomad mounts them: only the folders above keep other users out.
_OPTIONS = "noexec,size=1m,mode=0777,uid=65534,gid=65534"


def mount_again(allocations: Path) -> list[Path]:
    """Mounts a tmpfs on each folder for secrets that lost its own, and deletes what it has on disk; returns them.

    Call it while Nomad does not run. Folders of an allocation that still has processes keep their files.
    """
    if os.geteuid() != 0:
        return []
    found = [folder for folder in _folders(allocations) if not folder.is_mount()]
    used = {allocation for allocation in {_allocation(folder) for folder in found} if processes.below(allocation)}
    lost = [folder for folder in found if _allocation(folder) not in used]
    for folder in lost:
        _empty(folder)
        _mount(folder)
        (folder / _MARKER).touch()
    return lost


def _folders(allocations: Path) -> Iterator[Path]:
    for name in _NAMES:
        yield from sorted(allocations.glob(f"*/*/{name}"))


def _allocation(folder: Path) -> Path:
    return folder.parent.parent


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _mount(folder: Path) -> None:
    """Mounts a tmpfs that is never swapped out, if this kernel can do that (Linux 6.4)."""
    command = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*command, f"{_OPTIONS},noswap", "tmpfs", folder], capture_output=True, check=False).returncode:
        subprocess.run([*command, _OPTIONS, "tmpfs", folder], check=True)
