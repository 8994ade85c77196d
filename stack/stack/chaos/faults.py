"""The faults: how each begins, what it needs every second, and how it is undone.

Invariant: `end` works from the facts alone, in any process, and as often as it is called.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from stack.build import tools
from stack.chaos import disk
from stack.chaos.instances import process_ids
from stack.chaos.proxy import HEALTHY, Toxic
from stack.chaos.proxy_pool import Proxies
from stack.chaos.traffic_redirect import Diversion, lift, require_divertible
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes

Facts = dict[str, Any]
# Callers follow Consul within this time: none goes around a fault that has begun, none is cut off when it ends.
_CALLERS_FOLLOW_SECONDS = 1.0


@dataclass
class Scene:
    """Where a fault acts; `save` keeps the facts before they become true."""

    stack: Stack
    clients: Clients
    facts: Facts
    save: Callable[[], None]


class Fault:
    """What acts for a while. `begin` says in a sentence what it does now."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def require(self) -> None:
        """Refuses, before anything is done, what cannot be done here."""

    def begin(self) -> str:
        raise NotImplementedError

    def tick(self) -> None:
        """Called twice a second while the fault acts."""

    def end(self) -> None:
        raise NotImplementedError


class Paused(Fault):
    """Processes are stopped with SIGSTOP, as a machine that swaps or a long pause of a runtime would."""

    def __init__(self, scene: Scene, service: str, whole: str = "") -> None:
        super().__init__(scene)
        self._service, self._whole = service, whole

    def require(self) -> None:
        process_ids(self.scene.stack, self.scene.clients, self._service)

    def begin(self) -> str:
        found = chosen(process_ids(self.scene.stack, self.scene.clients, self._service), self._whole)
        family = sorted(processes.family(found))
        self.scene.facts["paused"] = [[pid, processes.start_time(pid)] for pid in family]
        self.scene.save()
        for pid in family:
            processes.send(pid, signal.SIGSTOP)
        return f"{self._service}: process {_listed(found)} is stopped, its connections stay"

    def end(self) -> None:
        for pid, started in self.scene.facts.get("paused", []):
            if processes.start_time(pid) == started:
                processes.send(pid, signal.SIGCONT)


class Network(Fault):
    """A toxic proxy stands between a service and whoever finds it in Consul."""

    def __init__(self, scene: Scene, service: str, toxic: Toxic, does: str) -> None:
        super().__init__(scene)
        self._service, self._toxic, self._does = service, toxic, does
        self._proxies: Proxies | None = None
        self._diversion: Diversion | None = None

    def require(self) -> None:
        require_divertible(self.scene.clients, self._service, set(self.scene.stack.ports().values()))

    def begin(self) -> str:
        self._proxies = Proxies()
        self._diversion = Diversion(self.scene.clients, self._service, self._proxies)
        self._diversion.follow()
        time.sleep(_CALLERS_FOLLOW_SECONDS)
        self._proxies.become(self._toxic)
        return f"{self._service} ({len(self._diversion)} instances): {self._does}"

    def tick(self) -> None:
        if self._diversion:
            self._diversion.follow()

    def end(self) -> None:
        if self._proxies:
            self._proxies.become(HEALTHY)
        lift(self.scene.clients, self._service)
        if self._proxies:
            time.sleep(_CALLERS_FOLLOW_SECONDS)


class AgentDown(Fault):
    """An agent is killed, and started again at the end."""

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__(scene)
        self._name = name

    def require(self) -> None:
        if agents.daemon(self.scene.stack, self._name).pid() is None:
            raise StackError(f"{self._name} is down already", "its process is not there", "./justw deploy")

    def begin(self) -> str:
        pid = agents.daemon(self.scene.stack, self._name).pid() or 0
        processes.end([pid], timeout=0)
        return f"{self._name}: process {pid} is killed and stays away"

    def end(self) -> None:
        start_agent(self.scene.stack, self._name)


class Sealed(Fault):
    """OpenBao has forgotten its key: it answers, but refuses everything. A new start unseals it."""

    def begin(self) -> str:
        self.scene.clients.vault.sys.seal()
        return "vault: sealed, every request is refused"

    def end(self) -> None:
        agent = agents.daemon(self.scene.stack, "vault")
        if agent.pid() is not None and self._sealed():
            agent.stop()
        start_agent(self.scene.stack, "vault")

    def _sealed(self) -> bool:
        reply = httpx.get(f"{self.scene.stack.url('vault')}/v1/sys/seal-status", timeout=5)
        return bool(reply.raise_for_status().json()["sealed"])


class DiskFull(Fault):
    """Postgres finds no room for new rows."""

    def begin(self) -> str:
        disk.fill(self.scene.stack)
        return "postgres: every write ends with `No space left on device` (SQLSTATE 53100), reads work"

    def end(self) -> None:
        disk.clear(self.scene.stack)


def kill(stack: Stack, clients: Clients, service: str, whole: str = "") -> str:
    """Ends one instance, or all of them, as the kernel does when memory is short."""
    found = chosen(process_ids(stack, clients, service), whole)
    for pid in found:
        processes.send(pid, signal.SIGKILL)
    return f"{service}: process {_listed(found)} is killed; Nomad starts it again"


def start_agent(stack: Stack, name: str) -> None:
    """Starts an agent that is not there and waits until it answers."""
    agent = next(agent for agent in agents.agents(stack, tools.ensure()) if agent.name == name)
    agents.start(stack, agent)
    agents.wait(stack, agent)


def chosen(pids: list[int], whole: str) -> list[int]:
    """One of them at random, or all."""
    return pids if whole else [random.choice(pids)]  # noqa: S311


def _listed(pids: Iterable[int]) -> str:
    return ", ".join(str(pid) for pid in pids)
