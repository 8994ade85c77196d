"""Faults of single instances: one is slow and sheds load, or one at a time leaves Consul and returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from support.stack_under_test import RunningStack
from support.traffic.load import Load, Request
from support.traffic.stub_server import StubServer, stubbed

USUAL_SECONDS, EXTRA_SECONDS, MOST_AT_ONCE = 0.1, 0.3, 2
# More than slow instances can carry, which is MOST_AT_ONCE calls each in USUAL_SECONDS + EXTRA_SECONDS.
PER_SECOND = 40
FLAP_SECONDS = 0.3


@contextmanager
def slow_instances(
    running: RunningStack, service: str, request: Request, number: int = 1
) -> Iterator[tuple[StubServer, Load]]:
    """Slows down some of the two instances, at a load of `request` that one usual instance can carry."""
    with stubbed(running, service) as backend:
        backend.pause = USUAL_SECONDS
        assert len(backend.instances) == 2
        for instance in islice(backend.instances.values(), number):
            instance.extra_pause, instance.most = EXTRA_SECONDS, MOST_AT_ONCE
        with Load(running.url("gateway"), PER_SECOND, lambda _: request) as load:
            yield backend, load


@contextmanager
def flapping_instances(running: RunningStack, service: str) -> Iterator[None]:
    """Takes an instance out of Consul and back again while the block runs, each in turn; the others stay."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            flap(running, service, lambda: None)

    flapper = threading.Thread(target=run, daemon=True)
    flapper.start()
    try:
        yield
    finally:
        stopping.set()
        flapper.join(30)


def flap(running: RunningStack, service: str, at_each_change: Callable[[], object]) -> None:
    """Takes each instance out of Consul twice, one after the other, each time for a moment; the others stay."""
    pause = threading.Event()
    for entry in running.instances(service):
        for _ in range(2):
            with _left(running, entry["Service"]["ID"]):
                at_each_change()
                pause.wait(FLAP_SECONDS)
            at_each_change()
            pause.wait(FLAP_SECONDS)


@contextmanager
def _left(running: RunningStack, instance: str) -> Iterator[None]:
    agent = running.clients.consul.agent.service
    agent.maintenance(instance, "true")
    try:
        yield
    finally:
        agent.maintenance(instance, "false")
