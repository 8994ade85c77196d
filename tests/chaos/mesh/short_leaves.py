"""Certificates (leaves) of every process that live for seconds instead of an hour, for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from support.kv_settings import changed_settings
from support.stack_under_test import RunningStack

JOBS = ("gateway", "order-service", "user-service")


class Leaves:
    """The leaves that each process has had since a time, by its log."""

    def __init__(self, running: RunningStack) -> None:
        self._running, self._began = running, time.time()
        self._issued: dict[str, set[float]] = {}

    def fewest(self) -> int:
        """Returns how many the process has had that has had the fewest; to be read often, because logs are cut off."""
        for job in JOBS:
            for instance, times in enumerate(self._running.logged(job, self._began, "certificate of the mesh issued")):
                self._issued.setdefault(f"{job} {instance}", set()).update(times)
        return min(map(len, self._issued.values()))


@contextmanager
def short_leaves(running: RunningStack, seconds: float) -> Iterator[Leaves]:
    """Changes the settings of all services and restores them at the end; each process gets a new leaf at both times."""
    leaves = Leaves(running)
    with ExitStack() as changed:
        for job in JOBS:
            changed.enter_context(changed_settings(running, job, {"mesh": {"leaf_seconds": float(seconds)}}))
        yield leaves
