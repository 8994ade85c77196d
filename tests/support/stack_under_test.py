"""The running stack that integration, infra and chaos tests look at, with what they all need from it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from nomad.api.exceptions import BadRequestNomadException

from stack import config
from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.machine import processes

T = TypeVar("T")

# Services and gateways are asked themselves; they look at what they need once a second, and then again.
_STEADY_SECONDS = 1.5


def eventually(what: str, probe: Callable[[], T | None], seconds: float = 10, every: float = 0.1) -> T:
    """The first answer of `probe` that is not false, within a deadline; names what never came true."""
    until = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(every)


class RunningStack:
    """The stack named by WAYPOST_STACK, seen by an operator."""

    def __init__(self) -> None:
        self.stack: Stack = config.current()
        self.clients = Clients(self.stack)

    def url(self, name: str) -> str:
        return self.stack.url(name)

    def instances(self, service: str) -> list[dict[str, Any]]:
        """The passing instances of a service, as Consul sees them."""
        found: list[dict[str, Any]] = self.clients.consul.health.service(service, passing=True)[1]
        return found

    def gateways(self) -> list[str]:
        """The URL of each passing instance of the gateway; behind the edge, only one of them would be asked."""
        services = [entry["Service"] for entry in self.instances("gateway")]
        return [f"http://{service['Address']}:{service['Port']}" for service in services]

    def readiness(self) -> list[dict[str, Any]]:
        """What each instance of the gateway says of itself."""
        return [httpx.get(f"{url}/readyz", timeout=5).json() for url in self.gateways()]

    def knock(self) -> None:
        """One call to each service from each gateway: a breaker that opened closes by a call, not by time alone."""
        for url in self.gateways():
            for path in ("/v1/users/me", "/v1/orders?limit=1"):
                httpx.get(url + path, headers={"Authorization": f"Bearer {self._token()}"}, timeout=15)

    @cache  # noqa: B019 -- there is one of it in a test run
    def _token(self) -> str:
        someone = {"email": f"{secrets.token_hex(8)}@knocking.example", "password": secrets.token_urlsafe(16)}
        httpx.post(
            self.url("gateway") + "/v1/users", json=someone | {"name": "Knocking"}, timeout=15
        ).raise_for_status()
        signed_in = httpx.post(self.url("gateway") + "/v1/sessions", json=someone, timeout=15).raise_for_status()
        return str(signed_in.json()["access_token"])

    def breakers(self, service: str) -> set[str]:
        """The states of the breaker before a service, in all gateways; "gone" where one has ended meanwhile."""
        try:
            return {str(ready["breakers"][service]) for ready in self.readiness()}
        except httpx.TransportError:
            return {"gone"}

    def whole(self) -> bool:
        """Whether every instance that the jobs ask for is there, passing and serving, and no gateway lacks any."""
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
            and all(_serves(entry["Service"]) for entries in found.values() for entry in entries)
        )

    def steady(self, seconds: float = 60) -> None:
        """Returns once the stack has been whole for a while: what an earlier test broke is mended in every instance."""
        since = [time.monotonic()]

        def look() -> bool:
            try:
                whole = self.whole()
                _ = whole or self.knock()
            except httpx.HTTPError:
                whole = False
            if not whole:
                since[0] = time.monotonic()
            return time.monotonic() - since[0] > _STEADY_SECONDS

        eventually("the stack is whole and stays so", look, seconds, every=0.3)

    def allocations(self, job: str, group: str | None = None) -> list[dict[str, Any]]:
        found = self.clients.nomad.job.get_allocations(job)
        return [alloc for alloc in found if alloc["ClientStatus"] == "running" and group in {None, alloc["TaskGroup"]}]

    def folder(self, alloc: dict[str, Any], task: str) -> Path:
        return self.stack.state / "nomad" / "data" / "alloc" / alloc["ID"] / task

    def pids(self, job: str, group: str | None = None) -> list[int]:
        """The service processes of a job: the ones that work in its task folders, without Nomad's executors."""
        folders = [self.folder(alloc, job) for alloc in self.allocations(job, group)]
        return sorted(pid for folder in folders for pid in self.working_in(folder))

    def working_in(self, folder: Path) -> list[int]:
        """The processes of the task that has this folder."""
        return [pid for pid in processes.below(folder) if _works_in(pid, folder)]

    def logged(self, job: str, since: float, *words: str) -> list[list[float]]:
        """When each instance of a job has written a line with all these words, of time.time(), after `since`."""
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
        # Keeps the flags, in which a deploy remembers what it seeded.
        flags = self.clients.consul.kv.get(key)[1]["Flags"]
        assert self.clients.consul.kv.put(key, value, flags=flags)

    def scale(self, job: str, group: str, count: int) -> None:
        """Asks for another number of instances; Nomad accepts that once no deployment of the job is under way."""
        body = {"Count": count, "Target": {"Group": group}}

        def accepted() -> bool:
            try:
                self.clients.nomad.job.request(job, "scale", json=body, method="post")
            except BadRequestNomadException as refusal:
                assert "active deployment" in refusal.nomad_resp.text
                return False
            return True

        eventually(f"{job} may be scaled", accepted, 60)


def _serves(service: dict[str, Any]) -> bool:
    """What an instance says of itself, if it speaks gRPC: Consul's check is a second behind."""
    if "grpc" not in (service["Tags"] or []):
        return True
    with grpc.insecure_channel(f"{service['Address']}:{service['Port']}") as channel:
        try:
            status = HealthStub(channel).Check(HealthCheckRequest(), timeout=1).status
        except grpc.RpcError:
            return False
    return bool(status == HealthCheckResponse.SERVING)


def environment(pid: int) -> str:
    """What a process was started with; nothing of one that has ended."""
    try:
        return (processes.PROC / str(pid) / "environ").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return (processes.PROC / str(pid) / "cwd").readlink() == folder
    except OSError:
        return False
