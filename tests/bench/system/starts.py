"""Restart time of a killed instance: from SIGKILL to its new process, and from there to serving."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from support.stack_under_test import RunningStack, eventually

INSTANCES = {"user-service": 2, "order-service": 2, "gateway": 2}


def born(pid: int) -> float:
    """The start of a process, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def served(running: RunningStack, job: str) -> Iterator[float]:
    """The moments at which instances of the job logged that they serve."""
    for alloc in running.allocations(job):
        stream = running.clients.nomad.client.stream_logs.stream
        for line in stream(alloc["ID"], job, "stdout", plain=True, origin="end", offset=8_000).splitlines():
            record = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if record.get("event") == "serving":
                yield datetime.fromisoformat(record["timestamp"]).timestamp()


def measure(running: RunningStack, job: str) -> str:
    before = set(running.pids(job))
    killed = time.time()
    os.kill(min(before), signal.SIGKILL)
    pid = eventually("a new process", lambda: set(running.pids(job)) - before, 20).pop()
    began = born(pid)
    serving = eventually("it serves", lambda: min((at for at in served(running, job) if at > began), default=0.0), 20)
    eventually("it is in Consul", lambda: len(running.instances(job)) == INSTANCES[job], 20)
    return f"{job:<14} new process after {began - killed:.2f} s, serving {serving - began:.2f} s later"


if __name__ == "__main__":
    stack = RunningStack()
    for name in INSTANCES:
        print(measure(stack, name))
