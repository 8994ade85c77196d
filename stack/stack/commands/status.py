"""`status`: the whole system on one screen: agents, jobs, service instances, breakers, versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from stack import telemetry_viewer
from stack.build import tools
from stack.cluster import nomad
from stack.cluster.agents import daemon, require_running
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import say
from stack.machine import processes


def status(stack: Stack) -> None:
    say(f"stack {stack.name}  ({stack.state})\n")
    for line in _agents(stack):
        say(line)
    require_running(stack)
    clients = Clients(stack)
    for section in (_jobs(clients), _instances(clients), _gateways(clients), _work(stack)):
        say()
        for line in section:
            say(line)
    mebibytes, count = processes.memory(stack.state)
    say(f"\nmemory {mebibytes} MiB in {count} processes (proportional set size)")


def _agents(stack: Stack) -> Iterator[str]:
    versions = tools.versions()
    yield f"{'agent':<12} {'version':<10} {'process':<10} address"
    for name in ("nomad", "consul", "vault"):
        pid = daemon(stack, name).pid()
        yield f"{name:<12} {versions.get(name, versions.get('bao', '')):<10} {pid or 'stopped':<10} {stack.url(name)}"


def _jobs(clients: Clients) -> Iterator[str]:
    yield f"{'job':<16} {'status':<10} {'version':<8} running"
    for name in nomad.names():
        if name in clients.nomad.job:
            job = clients.nomad.job.get_job(name)
            wanted = sum(group["Count"] for group in job["TaskGroups"])
            running = sum(alloc["ClientStatus"] == "running" for alloc in clients.nomad.job.get_allocations(name))
            yield f"{name:<16} {job['Status']:<10} {job['Version']:<8} {running}/{wanted}"


def _instances(clients: Clients) -> Iterator[str]:
    yield f"{'service':<22} {'address':<18} {'checks':<10} version"
    _, services = clients.consul.catalog.services()
    for name in sorted(set(services) - {"consul", "nomad", "nomad-client"}):
        for entry in clients.consul.health.service(name)[1]:
            yield _instance(name, entry)


def _instance(name: str, entry: dict[str, Any]) -> str:
    service = entry["Service"]
    passing = all(check["Status"] == "passing" for check in entry["Checks"])
    version = next((tag.partition("=")[2] for tag in service["Tags"] or [] if tag.startswith("version=")), "")
    return f"{name:<22} {service['Address']}:{service['Port']:<8} {'passing' if passing else 'failing':<10} {version}"


def _gateways(clients: Clients) -> Iterator[str]:
    """What each instance says of itself: behind the edge only one of them would be asked."""
    for entry in clients.consul.health.service("gateway")[1]:
        address = f"{entry['Service']['Address']}:{entry['Service']['Port']}"
        try:
            ready = httpx.get(f"http://{address}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError) as error:
            yield f"gateway {address} does not answer: {error}"
            continue
        yield f"gateway {address} {ready.get('status')}"
        for name, state in ready.get("dependencies", {}).items():
            yield f"  needs {name:<16} {state}"
        for name, state in ready.get("breakers", {}).items():
            yield f"  breaker {name:<14} {state}"


def _work(stack: Stack) -> Iterator[str]:
    """What the workers told telemetry last; without telemetry there is nothing to tell."""

    def last(name: str) -> dict[str, float]:
        return telemetry_viewer.last_values(stack, name, "order-service")

    for worker, active in sorted(last("worker.active").items()):
        yield f"worker {worker.partition('=')[2]:<15} {'active' if active else 'stands by'}"
    for projection, behind in sorted(last("projection.lag.events").items()):
        yield f"projection {projection.partition('=')[2]:<11} {behind:.0f} events behind"
    for (_, count), (_, age) in zip(last("errands.open").items(), last("errands.oldest.seconds").items(), strict=False):
        yield f"errands                {count:.0f} open, the oldest for {age:.1f} s"
