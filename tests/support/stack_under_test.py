"""The running stack of integration and chaos tests: its clients, instances, processes, logs and settings."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from nomad.api.exceptions import BadRequestNomadException
from support.mesh.channels import health_channel

from stack import config
from stack.cluster import agents, nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.machine import processes
from stack.mesh import dial, gateway_instance, operator_leaf
from stack.waiting import poll

T = TypeVar("T")

# Services and gateways check their dependencies once a second.
_STABLE_SECONDS = 1.5


def eventually(what: str, probe: Callable[[], T | None], seconds: float = 10, every: float = 0.1) -> T:
    """Calls `probe` until it returns something true, and returns that; fails by the name of the condition."""
    answer = poll(probe, seconds, every)
    assert answer, f"not within {seconds:g} s: {what}"
    return answer


class RunningStack:
    """The stack named by WAYPOST_STACK on this machine, with the credentials of its operator."""

    def __init__(self) -> None:
        self.stack: Stack = config.current()
        self.clients = Clients(self.stack)

    def url(self, name: str) -> str:
        return self.stack.url(name)

    def instances(self, service: str) -> list[dict[str, Any]]:
        """The passing instances of a service, as Consul sees them."""
        found: list[dict[str, Any]] = self.clients.consul.health.service(service, passing=True)[1]
        return found

    def readiness(self) -> list[dict[str, Any]]:
        """The readiness document of each passing gateway; a request to the edge reaches only one of them."""
        return [gateway_instance.readiness(self.clients, entry["Service"]) for entry in self.instances("gateway")]

    def call_every_service(self) -> None:
        """Makes each gateway call each service: an open breaker closes only when a call succeeds."""
        leaf = operator_leaf.issue(self.clients) if dial.is_on(self.clients, "gateway") else None
        headers = {"Authorization": f"Bearer {self._token()}"}
        for address in dial.instances(self.clients, "gateway"):
            with gateway_instance.client(address, leaf) as http:
                for path in ("/v1/users/me", "/v1/orders?limit=1"):
                    http.get(path, headers=headers, timeout=15)

    @cache  # noqa: B019 -- there is one of it in a test run
    def _token(self) -> str:
        someone = {"email": f"{secrets.token_hex(8)}@knocking.example", "password": secrets.token_urlsafe(16)}
        httpx.post(
            self.url("gateway") + "/v1/users", json=someone | {"name": "Knocking"}, timeout=15
        ).raise_for_status()
        signed_in = httpx.post(self.url("gateway") + "/v1/sessions", json=someone, timeout=15).raise_for_status()
        return str(signed_in.json()["access_token"])

    def breakers(self, service: str) -> set[str]:
        """The states of the breaker for a service in all gateways; "gone" if a gateway has ended meanwhile."""
        try:
            return {str(ready["breakers"][service]) for ready in self.readiness()}
        except httpx.TransportError:
            return {"gone"}

    def is_healthy(self) -> bool:
        """True if every instance that the jobs ask for passes its checks and serves, and every gateway is ready."""
        wanted = {
            service["Name"]: group["Count"]
            for job in nomad.names()
            if job in self.clients.nomad.job
            for group in self.clients.nomad.job.get_job(job)["TaskGroups"]
            for service in group["Services"] or []
        }
        ready = {state["status"] for state in self.readiness()}
        found = {name: self.instances(name) for name in wanted}
        return (
            ready == {"ready"}
            and all(len(found[name]) == wanted[name] for name in wanted)
            and all(self._serves(entry["Service"]) for entries in found.values() for entry in entries)
        )

    def _serves(self, service: dict[str, Any]) -> bool:
        """Asks a gRPC instance itself, because the check of Consul is up to a second old; True for any other."""
        if "grpc" not in (service["Tags"] or []):
            return True
        try:
            with health_channel(self.clients, service["ID"]) as channel:
                status = HealthStub(channel).Check(HealthCheckRequest(), timeout=1).status
        except grpc.RpcError:
            return False
        return bool(status == HealthCheckResponse.SERVING)

    def wait_until_healthy(self, seconds: float = 60) -> None:
        """Returns once the stack has been healthy for a while, so that no effect of an earlier test is left."""
        since = time.monotonic()

        def stable() -> bool:
            nonlocal since
            if not self._is_healthy_or_called():
                since = time.monotonic()
            return time.monotonic() - since > _STABLE_SECONDS

        eventually("the stack is healthy and stays so", stable, seconds, every=0.3)

    def _is_healthy_or_called(self) -> bool:
        """False after a call to every service if the stack is not healthy."""
        try:
            if self.is_healthy():
                return True
            self.call_every_service()
        except httpx.HTTPError:
            return False
        return False

    def allocations(self, job: str, group: str | None = None) -> list[dict[str, Any]]:
        found = self.clients.nomad.job.get_allocations(job)
        return [alloc for alloc in found if alloc["ClientStatus"] == "running" and group in {None, alloc["TaskGroup"]}]

    def folder(self, alloc: dict[str, Any], task: str) -> Path:
        return self.stack.state / "nomad" / "data" / "alloc" / str(alloc["ID"]) / task

    def pids(self, job: str, group: str | None = None) -> list[int]:
        """The service processes of a job, without Nomad's executors."""
        folders = [self.folder(alloc, job) for alloc in self.allocations(job, group)]
        return sorted(pid for folder in folders for pid in self.working_in(folder))

    @contextmanager
    def stopped_agent(self, name: str) -> Iterator[None]:
        """Stops an agent for a while: the kernel accepts connections, and the agent does not answer."""
        pid = agents.daemon(self.stack, name).pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def working_in(self, folder: Path) -> list[int]:
        """The processes of the task that has this folder."""
        return [pid for pid in processes.below(folder) if _works_in(pid, folder)]

    def logged(self, job: str, since: float, *words: str) -> list[list[float]]:
        """For each instance of a job, the times after `since` at which it logged a line with all these words."""
        return [list(self._lines(alloc, job, since, words)) for alloc in self.allocations(job)]

    def _lines(self, alloc: dict[str, Any], job: str, since: float, words: tuple[str, ...]) -> Iterator[float]:
        stream = self.clients.nomad.client.stream_logs.stream
        for line in stream(alloc["ID"], job, "stdout", plain=True, origin="end", offset=500_000).splitlines():
            # The first one may have lost its beginning.
            if line.startswith("{") and all(each in line for each in words):
                at = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
                if at >= since:
                    yield at

    def kv(self, key: str) -> str:
        return str(self.clients.consul.kv.get(key)[1]["Value"].decode())

    def put_kv(self, key: str, value: str) -> None:
        # Keeps the flags: `deploy` stores the checksum of the seed in them.
        flags = self.clients.consul.kv.get(key)[1]["Flags"]
        assert self.clients.consul.kv.put(key, value, flags=flags)

    def scale(self, job: str, group: str, count: int) -> None:
        """Sets the number of instances; Nomad accepts it once no deployment of the job is running."""
        body = {"Count": count, "Target": {"Group": group}}

        def accepted() -> bool:
            try:
                self.clients.nomad.job.request(job, "scale", json=body, method="post")
            except BadRequestNomadException as error:
                assert "active deployment" in error.nomad_resp.text
                return False
            return True

        eventually(f"{job} may be scaled", accepted, 60)


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return (processes.PROC / str(pid) / "cwd").readlink() == folder
    except OSError:
        return False
