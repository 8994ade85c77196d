"""Faults of the cluster that no chaos command makes: a drained node, a forgetful Consul, a port held by a stranger."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually


@contextmanager
def drained_node(running: RunningStack) -> Iterator[None]:
    """Drains the only node, so that Nomad stops every instance; opens it again."""
    _drain(running, {"Deadline": -1})
    try:
        eventually("every instance is stopped", lambda: _running(running) == 0, 90)
        yield
    finally:
        _drain(running, None)


@contextmanager
def closed_node(running: RunningStack) -> Iterator[None]:
    """Makes the only node ineligible for new instances; running ones continue."""
    nodes = running.clients.nomad.node
    nodes.eligible_node(_node(running), ineligible=True)
    try:
        yield
    finally:
        nodes.eligible_node(_node(running), eligible=True)


@contextmanager
def forgetful_consul(running: RunningStack, job: str) -> Iterator[None]:
    """Restores a Consul snapshot that is older than all instances of a job; a deploy ends the fault."""
    before = _snapshot(running, "GET").content
    replace(running, job)
    _snapshot(running, "PUT", before)
    try:
        # The snapshot lists the instances of its time; the agent removes them when it next compares, once a minute.
        eventually("Consul lists no instance", lambda: not running.instances(job), 180)
        # Right after an outage, such as a restore, a gateway uses an empty list only half a minute later.
        statuses = lambda: {each["status"] for each in running.readiness()}  # noqa: E731
        eventually("the gateways have noticed", lambda: statuses() == {"degraded"}, 120)
        yield
    finally:
        deploy = run("deploy", seconds=300)
        assert deploy.returncode == 0, deploy.stdout + deploy.stderr


@contextmanager
def held_ports(running: RunningStack) -> Iterator[None]:
    """Listens on every port that Nomad may assign and that is free."""
    first, last = running.stack.dynamic_ports
    held = []
    try:
        for port in range(first, last + 1):
            with suppress(OSError):
                held.append(_listening(port))
        yield
    finally:
        for each in held:
            each.close()


def replace(running: RunningStack, job: str) -> None:
    """Replaces each instance of a job, and returns when the new ones are healthy."""
    for alloc in running.allocations(job):
        stop(running, alloc["ID"])
    running.wait_until_healthy(90)


def stop(running: RunningStack, allocation: str) -> None:
    """Stops an allocation; Nomad starts another one in its place if it can."""
    running.clients.nomad.allocation.stop_allocation(allocation)
    ended = {"complete", "failed", "lost"}
    state = running.clients.nomad.allocation.get_allocation
    eventually("the allocation is stopped", lambda: state(allocation)["ClientStatus"] in ended, 60)


def _running(running: RunningStack) -> int:
    return sum(alloc["ClientStatus"] == "running" for alloc in running.clients.nomad.allocations.get_allocations())


def _node(running: RunningStack) -> str:
    (node,) = [node["ID"] for node in running.clients.nomad.nodes.get_nodes() if node["Status"] == "ready"]
    return str(node)


def _drain(running: RunningStack, spec: dict[str, int] | None) -> None:
    body = {"DrainSpec": spec, "MarkEligible": spec is None}
    running.clients.nomad.node.request(_node(running), "drain", json=body, method="post")


def _snapshot(running: RunningStack, method: str, content: bytes | None = None) -> httpx.Response:
    token = {"X-Consul-Token": running.clients.credentials.token("consul-management")}
    url = running.url("consul") + "/v1/snapshot"
    return httpx.request(method, url, headers=token, content=content, timeout=30).raise_for_status()


def _listening(port: int) -> socket.socket:
    server = socket.socket()
    try:
        server.bind(("127.0.0.1", port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server
