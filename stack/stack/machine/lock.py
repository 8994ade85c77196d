"""A lock across processes; the kernel releases it when the process that holds it ends, even after a crash."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stack.console import step

WAITING = "another command changes this stack"


@contextmanager
def exclusive(file: Path, waiting: str = "", patient: bool = True) -> Iterator[int]:
    """Holds `file` locked and yields its descriptor; shows `waiting` while another process holds it.

    Raises BlockingIOError instead of waiting when not `patient`.
    """
    while True:
        with _open(file) as lock:
            _take(lock, waiting, patient)
            if _is_current(file, lock):
                yield lock.fileno()
                return


def _open(file: Path) -> IO[str]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("w")


def _take(lock: IO[str], waiting: str, patient: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not patient:
            raise
        with step(waiting or "waiting for another deploy"):
            fcntl.flock(lock, fcntl.LOCK_EX)


def _is_current(file: Path, lock: IO[str]) -> bool:
    """Returns False if the file was removed meanwhile, as `destroy` does: such a lock does not exclude others."""
    try:
        return os.path.samestat(file.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
