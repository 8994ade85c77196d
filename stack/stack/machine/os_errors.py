"""Converts errors of the operating system to a StackError with advice."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stack.config import ROOT, cache
from stack.console import StackError

GB = 1_000_000_000
_FULL = {errno.ENOSPC, errno.EDQUOT}


def explain(command: str, error: OSError) -> StackError:
    """Returns the error to show for a full disk, a folder without permission, or any other OSError."""
    if error.errno in _FULL:
        free = ", ".join(_free(error.filename))
        advice = f"free some space{_move(error.filename)}, then run it again"
        return StackError(f"{command} found no space on a disk", f"{error.strerror}; free: {free}", advice)
    if error.filename is None:
        return StackError(f"{command} failed in the operating system", str(error), "./justw status")
    advice = f"make it usable for this user{_move(error.filename)}"
    return StackError(f"{error.filename} cannot be used", str(error.strerror), advice)


def _move(file: str | None) -> str:
    """Returns the advice to move the cache, for a file that may be in it."""
    inside = file is None or Path(str(file)).is_relative_to(cache())
    return ", or set WAYPOST_CACHE to a folder elsewhere" if inside else ""


def _free(file: str | None) -> Iterator[str]:
    """Yields the free space of the file's disk; of every possible disk if the error names no file."""
    for folder in [Path(str(file))] if file else [ROOT, cache(), Path(tempfile.gettempdir())]:
        yield f"{_bytes_free(folder) / GB:.1f} GB for {folder}"


def _bytes_free(path: Path) -> int:
    for existing in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(existing).free
    return 0
