"""The faults: how each of them begins, acts periodically and is undone.

Invariant: `undo` needs only the saved facts, works in any process, and may be called repeatedly.
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
from stack.chaos.proxy_pool import ProxyPool
from stack.chaos.traffic_redirect import TrafficRedirect, remove_redirect, require_redirectable
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes

Facts = dict[str, Any]
# Callers see a change in Consul within this time: none bypasses a fault that has begun, none is cut off when it ends.
_CALLERS_FOLLOW_SECONDS = 1.0


@dataclass
class FaultContext:
    """The stack that a fault acts on; `save` stores the facts before they become true."""

    stack: Stack
    clients: Clients
    facts: Facts
    save: Callable[[], None]


class Fault:
    """A fault that lasts."""

    def __init__(self, context: FaultContext) -> None:
        self.context = context

    def require(self) -> None:
        """Raises StackError, before anything is changed, if the fault is impossible here."""

    def begin(self) -> str:
        """Starts the fault; returns its effect in a sentence."""
        raise NotImplementedError

    def tick(self) -> None:
        """Called twice a second while the fault is active."""

    def undo(self) -> None:
        raise NotImplementedError


class Paused(Fault):
    """Stops processes with SIGSTOP: they look like processes on a machine that swaps."""

    def __init__(self, context: FaultContext, service: str, which: str = "") -> None:
        super().__init__(context)
        self._service, self._which = service, which

    def require(self) -> None:
        process_ids(self.context.stack, self.context.clients, self._service)

    def begin(self) -> str:
        found = chosen(process_ids(self.context.stack, self.context.clients, self._service), self._which)
        family = sorted(processes.family(found))
        self.context.facts["paused"] = [[pid, processes.start_time(pid)] for pid in family]
        self.context.save()
        for pid in family:
            processes.pause(pid)
        return f"{self._service}: process {_listed(found)} is stopped, its connections stay"

    def undo(self) -> None:
        for pid, started in self.context.facts.get("paused", []):
            if processes.start_time(pid) == started:
                processes.send(pid, signal.SIGCONT)


class Network(Fault):
    """Puts a proxy with a toxic between a service and its callers."""

    def __init__(self, context: FaultContext, service: str, toxic: Toxic, effect: str) -> None:
        super().__init__(context)
        self._service, self._toxic, self._effect = service, toxic, effect
        self._proxies: ProxyPool | None = None
        self._redirect: TrafficRedirect | None = None

    def require(self) -> None:
        require_redirectable(self.context.clients, self._service, set(self.context.stack.ports().values()))

    def begin(self) -> str:
        self._proxies = ProxyPool()
        self._redirect = TrafficRedirect(self.context.clients, self._service, self._proxies)
        self._redirect.follow()
        time.sleep(_CALLERS_FOLLOW_SECONDS)
        self._proxies.apply(self._toxic)
        return f"{self._service} ({len(self._redirect)} instances): {self._effect}"

    def tick(self) -> None:
        if self._redirect:
            self._redirect.follow()

    def undo(self) -> None:
        if self._proxies:
            self._proxies.apply(HEALTHY)
        remove_redirect(self.context.clients, self._service)
        if self._proxies:
            time.sleep(_CALLERS_FOLLOW_SECONDS)


class AgentDown(Fault):
    """Kills an agent, and starts it again at the end."""

    def __init__(self, context: FaultContext, name: str) -> None:
        super().__init__(context)
        self._name = name

    def require(self) -> None:
        if agents.daemon(self.context.stack, self._name).pid() is None:
            raise StackError(f"{self._name} is down already", "its process does not run", "./justw deploy")

    def begin(self) -> str:
        pid = agents.daemon(self.context.stack, self._name).pid() or 0
        processes.end([pid], timeout=0)
        return f"{self._name}: process {pid} is killed and stays down"

    def undo(self) -> None:
        start_agent(self.context.stack, self._name)


class Sealed(Fault):
    """Seals OpenBao: it drops its key and rejects every request until it is restarted, which unseals it."""

    def begin(self) -> str:
        self.context.clients.vault.sys.seal()
        return "vault: sealed, every request is rejected"

    def undo(self) -> None:
        agent = agents.daemon(self.context.stack, "vault")
        if agent.pid() is not None and self._sealed():
            agent.stop()
        start_agent(self.context.stack, "vault")

    def _sealed(self) -> bool:
        reply = httpx.get(f"{self.context.stack.url('vault')}/v1/sys/seal-status", timeout=5)
        return bool(reply.raise_for_status().json()["sealed"])


class DiskFull(Fault):
    """Makes every write to Postgres fail as on a full disk."""

    def begin(self) -> str:
        disk.fill(self.context.stack)
        return "postgres: every write ends with `No space left on device` (SQLSTATE 53100), reads work"

    def undo(self) -> None:
        disk.clear(self.context.stack)


def kill(stack: Stack, clients: Clients, service: str, which: str = "") -> str:
    """Kills one instance, or all of them, as the kernel does without free memory."""
    found = chosen(process_ids(stack, clients, service), which)
    for pid in found:
        processes.send(pid, signal.SIGKILL)
    return f"{service}: process {_listed(found)} is killed; Nomad starts it again"


def start_agent(stack: Stack, name: str) -> None:
    """Starts an agent that does not run, and waits until it responds."""
    agent = next(agent for agent in agents.agents(stack, tools.ensure()) if agent.name == name)
    agents.start(stack, agent)
    agents.wait(stack, agent)


def chosen(pids: list[int], which: str) -> list[int]:
    """Returns a random one of the processes, or all of them if `which` says so."""
    return pids if which else [random.choice(pids)]  # noqa: S311


def _listed(pids: Iterable[int]) -> str:
    return ", ".join(str(pid) for pid in pids)
