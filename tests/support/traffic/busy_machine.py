"""Takes the machine's processor time from the stack."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = max(6, 3 * (os.cpu_count() or 1))


@contextmanager
def starved_machine() -> Iterator[None]:
    """Runs busy processes of the same priority as the stack's while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def slowdown(cpu_seconds: float = 0.3) -> float:
    """How many times longer than its CPU time some work takes."""
    began, used = time.monotonic(), time.process_time() + cpu_seconds
    while time.process_time() < used:
        pass
    return (time.monotonic() - began) / cpu_seconds
