"""One at a time across processes: a lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stack.console import StackError, step

WAITING = "another command changes this stack"


@contextmanager
def exclusive(file: Path, waiting: str = "", patient: bool = True) -> Iterator[int]:
    """Holds `file` locked and gives its descriptor; while another holds it, says what it is `waiting` for.

    Raises BlockingIOError at once, instead of waiting, when not `patient`.
    """
    with _open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not patient:
                raise
            with step(waiting or "waiting for another deploy"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _open(file: Path) -> IO[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("w")
    except OSError as error:
        raise StackError(
            f"{file.parent} cannot be written",
            str(error),
            "make it writable, or set WAYPOST_CACHE to a folder that is",
        ) from error
