"""Hypothesis: a machine without free processor time makes answers slow, and restarts nothing.

Fault: busy processes beside the stack. Observed: every answer, and the processes of every job. Recovery: by itself,
within seconds. Controls: a little work takes long, so the machine is starved; a process that does not run at all is
restarted.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.busy_machine import BUSY, slowdown, starved_machine
from support.traffic.load import Load, Request
from support.traffic.performance_targets import Effort, efforts

from stack.machine import processes

JOBS = ("user-service", "order-service", "gateway", "edge", "postgres")
RATE = 4
BACK_SECONDS = 10.0
# A caller may be refused while its call cannot be finished in time; anything else would be a wrong answer.
RETRYABLE = {503, 504}

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("healthy")]


@efforts(20, 300)
def test_a_starved_machine_answers_slowly_restarts_nothing_and_is_well_soon_after(
    running: RunningStack, placing: Callable[[int], Request], effort: Effort
) -> None:
    before = {job: running.pids(job) for job in JOBS}
    with Load(running.url("gateway"), RATE, placing) as load:
        eventually("the load flows", lambda: len(load.answers) > 2 * RATE, 30)
        with starved_machine():
            began, slowdowns = time.monotonic(), [slowdown()]
            while time.monotonic() - began < effort.amount:
                time.sleep(1)
                slowdowns.append(slowdown())
        ended = time.monotonic()
        eventually("all is well again", lambda: _is_well(running), effort.bound(BACK_SECONDS, 60))
        back = time.monotonic() - ended
    assert {job: running.pids(job) for job in JOBS} == before
    assert {answer.status for answer in load.failures} <= RETRYABLE, load.report()
    share = len(load.failures) / len(load.answers)
    slowest = max(answer.seconds for answer in load.answers)
    print(
        f"{BUSY} busy processes for {effort.amount:g} s made work {max(slowdowns):.1f} times slower; "
        f"{100 * share:.1f} % of the calls were refused, the slowest answer took {slowest:.1f} s, "
        f"all was well after {back:.1f} s; {load.report()}"
    )
    assert max(slowdowns) > 2, "control: the machine was not starved"
    # In the short form other tests compete for the same processors, so it bounds nothing but a complete outage.
    assert share <= effort.bound(0.05, 0.9)


def _is_well(running: RunningStack) -> bool:
    try:
        return running.is_healthy()
    except httpx.TransportError:
        return False


@pytest.mark.long
def test_a_process_that_does_not_run_at_all_is_restarted(running: RunningStack) -> None:
    """Control: the check from outside restarts an instance that does not answer for minutes."""
    victim = running.pids("order-service", "api")[0]
    processes.pause(victim)
    try:
        eventually("it is replaced", lambda: victim not in running.pids("order-service", "api"), 400, every=1)
        eventually("two instances run", lambda: len(running.pids("order-service", "api")) == 2, 60)
    finally:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
    running.wait_until_healthy(60)
