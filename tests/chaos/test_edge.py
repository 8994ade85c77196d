"""Hypothesis: the edge loses no request when it ends, and follows Consul again after any outage of it.

Faults: SIGTERM with requests in progress; a Consul that does not answer. Observed: every answer, and the
processes of the edge.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic import connections
from support.traffic.connections import Address
from support.traffic.load import Load, Request
from support.traffic.performance_targets import Effort, efforts

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("healthy")]
REQUESTS = 30


def test_an_edge_that_is_stopped_finishes_the_requests_in_progress(running: RunningStack) -> None:
    before = running.pids("edge")
    edge = Address.of(running.url("gateway"))
    begun = connections.head("POST", "/v1/users", length=2) + b"{"
    with connections.unfinished_bodies(edge, begun, REQUESTS, every=600) as held:
        time.sleep(0.5)
        os.kill(min(before), signal.SIGTERM)
        time.sleep(1.0)
        for connection in held:
            connection.sendall(b"}")
        answers = [connection.recv(4096).decode().lower() for connection in held]
    assert {answer.split()[1] for answer in answers} == {"422"}
    assert all("\r\nconnection: close\r\n" in answer for answer in answers)
    eventually("the edge runs again", lambda: len(set(running.pids("edge")) - set(before)) == 2, 60)
    running.wait_until_healthy()


@efforts(15, 90)
def test_without_consul_the_edge_keeps_its_instances_and_follows_consul_again_afterwards(
    running: RunningStack, reading: Callable[[int], Request], effort: Effort
) -> None:
    before = running.pids("edge")
    with Load(running.url("gateway"), 10, reading) as load:
        eventually("the load flows", lambda: len(load.answers) > 10, 30)
        with running.stopped_agent("consul"):
            time.sleep(effort.amount)
        running.wait_until_healthy()
        running.scale("gateway", "api", 1)
        eventually("one gateway has ended", lambda: len(running.pids("gateway")) == 1, 60)
        enough = len(load.answers) + 50
        eventually("calls went on", lambda: len(load.answers) > enough, 30)
        running.scale("gateway", "api", 2)
        running.wait_until_healthy()
    print(f"Consul stopped for {effort.amount:.0f} s: {load.report()}")
    assert running.pids("edge") == before
    assert [answer for answer in load.failures if answer.status != httpx.codes.GATEWAY_TIMEOUT] == []
