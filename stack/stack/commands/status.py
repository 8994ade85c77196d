"""`status`: prints the state of the system: agents, jobs, service instances, gateways, workers, memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
from nomad.api.exceptions import BaseNomadException

from stack import telemetry_viewer
from stack.build import tools
from stack.cluster import agents, nomad
from stack.cluster.clients import Clients
from stack.cluster.job_health.job_state import JobState
from stack.config import Stack
from stack.console import say
from stack.machine import processes
from stack.mesh import gateway_instance

Row = dict[str, Any]


def status(stack: Stack, as_json: bool = False) -> None:
    """Prints what runs, as text or as JSON; raises StackError after the agents if one of them does not run."""
    head = {"stack": stack.name, "folder": str(stack.state), "agents": list(_agents(stack))}
    if not as_json:
        for line in _head_lines(head):
            say(line)
    agents.require_running(stack)
    body = _body(stack, Clients(stack))
    if as_json:
        say(json.dumps(head | body, indent=2))
    else:
        for line in _body_lines(body):
            say(line)


def _body(stack: Stack, clients: Clients) -> Row:
    mebibytes, count = processes.memory(stack.state)
    return {
        "jobs": list(_jobs(clients)),
        "problems": list(_problems(stack, clients)),
        "instances": list(_instances(clients)),
        "gateways": list(_gateways(clients)),
        **_worker_metrics(stack),
        "memory": {"mebibytes": mebibytes, "processes": count},
    }


def _agents(stack: Stack) -> Iterator[Row]:
    versions = tools.versions()
    for name in ("nomad", "consul", "vault"):
        version = versions.get(name, versions.get("bao", ""))
        yield {"name": name, "version": version, "pid": agents.daemon(stack, name).pid(), "url": stack.url(name)}


def _jobs(clients: Clients) -> Iterator[Row]:
    for name in nomad.names():
        if name in clients.nomad.job:
            job = clients.nomad.job.get_job(name)
            allocations = clients.nomad.job.get_allocations(name)
            running = sum(allocation["ClientStatus"] == "running" for allocation in allocations)
            wanted = sum(group["Count"] for group in job["TaskGroups"])
            yield {
                "name": name,
                "status": job["Status"],
                "version": job["Version"],
                "running": running,
                "wanted": wanted,
            }


def _problems(stack: Stack, clients: Clients) -> Iterator[Row]:
    """Yields why jobs do not run completely."""
    for name in nomad.names():
        if name in clients.nomad.job:
            found = JobState(stack, clients, name).current_problems()
            yield from ({"job": name, **asdict(problem)} for problem in found)


def _instances(clients: Clients) -> Iterator[Row]:
    _, services = clients.consul.catalog.services()
    for name in sorted(set(services) - {"consul", "nomad", "nomad-client"}):
        for entry in clients.consul.health.service(name)[1]:
            service = entry["Service"]
            tags = [tag.partition("=")[2] for tag in service["Tags"] or [] if tag.startswith("version=")]
            yield {
                "service": name,
                "address": service["Address"],
                "port": service["Port"],
                "passing": all(check["Status"] == "passing" for check in entry["Checks"]),
                "version": tags[0] if tags else "",
            }


def _gateways(clients: Clients) -> Iterator[Row]:
    """Yields the readiness of each gateway instance, read directly because the edge would choose only one of them."""
    for entry in clients.consul.health.service("gateway")[1]:
        service = entry["Service"]
        row: Row = {
            "address": f"{service['Address']}:{service['Port']}",
            "status": None,
            "error": None,
            "dependencies": {},
            "breakers": {},
        }
        try:
            ready = gateway_instance.readiness(clients, service)
            yield row | {name: ready[name] for name in ("status", "dependencies", "breakers") if name in ready}
        except (httpx.HTTPError, ValueError) as error:
            yield row | {"error": str(error)}
        except BaseNomadException as error:
            why = getattr(error.nomad_resp, "text", error)
            yield row | {"error": f"Nomad does not say how to reach it: {why}"}


def _worker_metrics(stack: Stack) -> Row:
    """Returns the newest metrics of the Order Service's workers; empty in a stack without telemetry."""

    def last(name: str) -> list[tuple[str, float]]:
        values = telemetry_viewer.last_values(stack, name, "order-service")
        return sorted((key.partition("=")[2], value) for key, value in values.items())

    pending, oldest = last("outbox.pending"), last("outbox.oldest.seconds")
    return {
        "workers": [{"instance": name, "leader": bool(value)} for name, value in last("worker.leader")],
        "projections": [{"name": name, "events_behind": int(value)} for name, value in last("projection.lag.events")],
        "outbox": {"pending": int(pending[0][1]), "oldest_seconds": oldest[0][1]} if pending and oldest else None,
    }


def _head_lines(head: Row) -> Iterator[str]:
    yield f"stack {head['stack']}  ({head['folder']})\n"
    yield f"{'agent':<12} {'version':<10} {'process':<10} address"
    for row in head["agents"]:
        yield f"{row['name']:<12} {row['version']:<10} {row['pid'] or 'stopped':<10} {row['url']}"


def _body_lines(body: Row) -> Iterator[str]:
    yield f"\n{'job':<16} {'status':<10} {'version':<8} running"
    for row in body["jobs"]:
        yield f"{row['name']:<16} {row['status']:<10} {row['version']:<8} {row['running']}/{row['wanted']}"
    for row in body["problems"]:
        yield f"! {row['text']}"
        yield f"    next: {row['remedy']}"
    yield f"\n{'service':<22} {'address':<18} {'checks':<10} version"
    for row in body["instances"]:
        checks = "passing" if row["passing"] else "failing"
        yield f"{row['service']:<22} {row['address']}:{row['port']:<8} {checks:<10} {row['version']}"
    yield ""
    for row in body["gateways"]:
        yield from _gateway_lines(row)
    yield ""
    yield from _worker_lines(body)
    memory = body["memory"]
    yield f"\nmemory {memory['mebibytes']} MiB in {memory['processes']} processes (proportional set size)"


def _gateway_lines(row: Row) -> Iterator[str]:
    if row["error"]:
        yield f"gateway {row['address']} does not answer: {row['error']}"
        return
    yield f"gateway {row['address']} {row['status']}"
    for name, state in row["dependencies"].items():
        yield f"  needs {name:<16} {state}"
    for name, state in row["breakers"].items():
        yield f"  breaker {name:<14} {state}"


def _worker_lines(body: Row) -> Iterator[str]:
    for row in body["workers"]:
        yield f"worker {row['instance']:<15} {'leader' if row['leader'] else 'standby'}"
    for row in body["projections"]:
        yield f"projection {row['name']:<11} {row['events_behind']} events behind"
    if body["outbox"]:
        outbox = body["outbox"]
        yield f"outbox                 {outbox['pending']} pending, the oldest for {outbox['oldest_seconds']:.1f} s"
