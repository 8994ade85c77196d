"""Ends a process whose event loop is stuck, so that Nomad starts it again; a process without a CPU is only slow.

A health check from outside cannot tell the two apart. Here a thread posts a callback to the loop and counts the
seconds until it runs, without those in which a thread of the process was ready to run and waited for a CPU, as the
kernel counts them. So a busy machine alone never ends a process; a restart would need more CPU time than the answer.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

EXIT_CODE = 70
STUCK_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_LATE_SECONDS = 5.0
_LAST_LOG_SECONDS = 5.0
_SCHEDSTAT = Path("/proc/self/schedstat")
_THREADS = Path("/proc/self/task")


def start(loop: asyncio.AbstractEventLoop, stuck_seconds: float = STUCK_SECONDS) -> None:
    """Watches `loop` from now on, in a thread of its own."""
    threading.Thread(target=_watch, args=(loop, stuck_seconds), name="watchdog", daemon=True).start()


def _watch(loop: asyncio.AbstractEventLoop, stuck_seconds: float) -> None:
    while True:
        ran = threading.Event()
        try:
            loop.call_soon_threadsafe(ran.set)
        except RuntimeError:  # the loop is closed, because the process ends
            return
        if not ran.wait(_LOOK_SECONDS):
            _wait_until(ran, stuck_seconds)
        time.sleep(_LOOK_SECONDS)


def _wait_until(ran: threading.Event, stuck_seconds: float) -> None:
    """Waits until the callback has run; ends the process if the loop has had `stuck_seconds` and did not run it."""
    began = looked = time.monotonic()
    waits, own = cpu_waits(), 0.0
    while not ran.wait(_LOOK_SECONDS):
        now, waits_now = time.monotonic(), cpu_waits()
        # At most twice the interval: a process that was stopped for an hour has not been stuck for an hour.
        elapsed = min(now - looked, 2 * _LOOK_SECONDS)
        own += max(0.0, elapsed - seconds_between(waits, waits_now))
        looked, waits = now, waits_now
        if own >= stuck_seconds:
            _end(own)
    if time.monotonic() - began >= _LATE_SECONDS:
        log.warning("event loop was late", seconds=round(time.monotonic() - began, 1), without_cpu_wait=round(own, 1))


def cpu_waits() -> dict[str, float]:
    """Returns for each thread of this process the seconds in which it was ready to run and waited for a CPU."""
    if not _SCHEDSTAT.exists():
        # This kernel does not count it: everything but CPU time counts as waiting, so only a busy loop is found.
        return {"process": time.monotonic() - time.process_time()}
    waits: dict[str, float] = {}
    for thread in _THREADS.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            # Three numbers: CPU time, waiting time, count of runs (Documentation/scheduler/sched-stats.rst).
            waits[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return waits


def seconds_between(before: dict[str, float], after: dict[str, float]) -> float:
    """Returns how much the threads have waited in total; those that have ended meanwhile are left out."""
    return sum(max(0.0, seconds - before.get(thread, 0.0)) for thread, seconds in after.items())


def _end(seconds: float) -> None:
    """Logs where each thread is, and exits. Exits even if the stuck thread holds the lock of the log."""
    exiting = threading.Timer(_LAST_LOG_SECONDS, os._exit, (EXIT_CODE,))
    exiting.daemon = True
    exiting.start()
    log.critical("event loop is stuck, the process ends", seconds=round(seconds, 1), stacks=_stacks())
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(EXIT_CODE)


def _stacks() -> str:
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
