"""The watchdog ends a process whose loop is stuck, and never one that only waits for a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chassis import watchdog

STUCK_SECONDS = 2.0
# A process with a loop that does `work` once, without an await; prints how long that took.
PROGRAM = """
import asyncio, os, threading, time
from chassis import watchdog
from chassis.telemetry import logs

def compute(seconds):
    ends_at = time.thread_time() + seconds
    while time.thread_time() < ends_at:
        pass

async def main():
    logs.to_stdout("test")
    watchdog.start(asyncio.get_running_loop(), {stuck})
    await asyncio.sleep(1.5)
    {setup}
    began = time.monotonic()
    {work}
    await asyncio.sleep(1.5)
    print("took", time.monotonic() - began - 1.5, flush=True)

asyncio.run(main())
os._exit(0)
"""
ON_ONE_CPU = "os.sched_setaffinity(0, {cpu}); os.setpriority(os.PRIO_PROCESS, 0, 19)"


def program(work: str, setup: str = "pass") -> subprocess.Popen[str]:
    text = PROGRAM.format(work=work, setup=setup, stuck=STUCK_SECONDS)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    output = process.communicate(timeout=seconds)[0]
    return process.returncode, output


@contextmanager
def busy(cpu: int, count: int = 4) -> Iterator[None]:
    """Keeps one CPU busy with processes of a higher priority."""
    text = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", text]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


@pytest.mark.parametrize("work", ["compute(600)", "time.sleep(600)", "threading.Event().wait(600)"])
def test_a_stuck_loop_ends_the_process_and_the_log_has_its_stack(work: str) -> None:
    code, output = outcome(program(work))
    assert code == watchdog.EXIT_CODE
    (line,) = [json.loads(line) for line in output.splitlines()]
    assert line["event"] == "event loop is stuck, the process ends"
    assert line["seconds"] >= STUCK_SECONDS
    assert "in main" in line["stacks"]


def test_a_stuck_loop_ends_the_process_although_it_holds_the_lock_of_the_log() -> None:
    code, _ = outcome(program("import sys; sys.stdout.flush = lambda: time.sleep(600); time.sleep(600)"))
    assert code == watchdog.EXIT_CODE


def test_a_loop_that_is_slow_for_less_than_the_limit_goes_on() -> None:
    assert outcome(program(f"compute({STUCK_SECONDS / 4})"))[0] == 0


@pytest.mark.parametrize("counted", [True, False], ids=["waiting is counted", "control: by the clock"])
def test_a_process_that_waits_for_a_cpu_is_not_stuck(counted: bool) -> None:
    """A little work, which takes longer than the limit by the clock: the machine gives the process no CPU time."""
    cpu = min(os.sched_getaffinity(0))
    setup = ON_ONE_CPU.format(cpu={cpu}) + ("" if counted else "; watchdog.cpu_waits = dict")
    with busy(cpu):
        code, output = outcome(program("compute(0.05)", setup), 300)
    assert code == (0 if counted else watchdog.EXIT_CODE), output
    if counted:
        assert float(output.splitlines()[-1].split()[1]) > 2 * STUCK_SECONDS


def test_without_the_count_of_the_kernel_only_cpu_time_counts() -> None:
    setup = "from pathlib import Path; watchdog._SCHEDSTAT = Path('/nonexistent')"
    assert outcome(program(f"time.sleep({2 * STUCK_SECONDS})", setup))[0] == 0
    assert outcome(program("compute(600)", setup))[0] == watchdog.EXIT_CODE


def test_a_process_that_was_stopped_is_not_stuck() -> None:
    with program("compute(0.1); print('begun', flush=True); time.sleep(0.5)") as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(3 * STUCK_SECONDS)
        os.kill(process.pid, signal.SIGCONT)
        assert outcome(process)[0] == 0


def test_the_kernel_counts_the_time_that_a_thread_waits_for_a_cpu() -> None:
    cpu = min(os.sched_getaffinity(0))
    waited: list[float] = []

    def work() -> None:
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        before, began = watchdog.cpu_waits(), time.monotonic()
        ends_at = time.thread_time() + 0.2
        while time.thread_time() < ends_at:
            pass
        share = watchdog.seconds_between(before, watchdog.cpu_waits()) / (time.monotonic() - began)
        waited.append(share)

    with busy(cpu):
        time.sleep(0.3)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert waited[0] > 0.4


def test_a_thread_that_ended_does_not_reduce_the_time_waited() -> None:
    assert watchdog.seconds_between({"1": 5.0, "2": 100.0}, {"1": 6.5, "3": 0.5}) == 2.0
