"""`deploy`: brings up a healthy system, one visible step at a time; a second run changes nothing.

tools → zipapps → agents → policies, KV, secrets → mesh → jobs → one real order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import requests
from consul import ConsulException
from hvac.exceptions import VaultError

from stack.build import protos, tools, zipapps
from stack.cluster import agents, nomad, smoke_test
from stack.cluster.clients import Clients
from stack.cluster.consul import Consul
from stack.cluster.credentials import Credentials
from stack.cluster.mesh.changes import mesh_changes
from stack.cluster.nomad import Nomad
from stack.cluster.planned_changes import Change, apply_all
from stack.cluster.vault import Vault
from stack.commands import chaos
from stack.config import Stack
from stack.console import StackError, Step, say, step
from stack.machine.lock import WAITING, exclusive
from stack.waiting import poll, retry, wait_until

# A Unix socket's path may have 107 bytes; the longest one of a stack adds 47 to its folder.
LONGEST_FOLDER = 60


def deploy(stack: Stack) -> None:
    """Brings the stack to the state of the files in the checkout; prints the addresses."""
    began = time.monotonic()
    say(f"deploying stack {stack.name!r} into {stack.state}")
    with exclusive(stack.lock, WAITING):
        agents.require_ports(stack)
        _make_folders(stack)
        changed, kept = _deploy(stack)
    say(f"\n{summary(changed, kept)}  ({time.monotonic() - began:.1f} s)")
    for line in chaos.active(stack):
        say(f"  active fault: {line}")
    _print_addresses(stack)


def summary(changed: int, kept: int) -> str:
    """Returns the last line of a deploy from the numbers of changes and of keys kept as changed by hand."""
    if not changed and not kept:
        return "no change: everything is as in the files"
    line = f"{changed} change{'' if changed == 1 else 's'}" if changed else "no change"
    return f"{line}; {kept} {'key' if kept == 1 else 'keys'} kept as changed by hand" if kept else line


def _deploy(stack: Stack) -> tuple[int, int]:
    """Returns the number of changes, and of keys that were kept as changed by hand."""
    found = _tools()
    artifacts = build(stack)
    clients = Clients(stack)
    changed = _start_agents(stack, found, clients)
    server = Nomad(stack, clients, found, artifacts)
    with step("nomad: node ready", "5 s"):
        server.bootstrap(Credentials(stack).token("nomad-management"))
        _wait_for_node(stack, found, server)
    for line in chaos.undo_left_over(stack):
        say(f"  {line}")
    consul, vault = Consul(stack, clients), Vault(stack, clients)
    changed += _apply("consul: policies, roles, KV", consul.changes)
    changed += _apply("vault: engines, roles, secrets", vault.changes)
    changed += _apply("mesh: certificates, intentions", lambda: mesh_changes(stack, clients))
    changed += _run_jobs(server, [name for name in nomad.deployable(found) if name in nomad.FOUNDATION])
    changed += _apply("vault: database logins", lambda: _retried(vault.database_changes))
    changed += _run_jobs(server, [name for name in nomad.deployable(found) if name not in nomad.FOUNDATION])
    kept = consul.seed.changed_by_hand()
    for key in kept:
        say(f"  kept: {key} was changed by hand in Consul; delete the key and deploy to get the file's value")
    _smoke_test(stack, changed)
    zipapps.prune(stack.state, server.artifact_files())
    return changed, len(kept)


def _make_folders(stack: Stack) -> None:
    if len(str(stack.state)) > LONGEST_FOLDER:
        raise StackError(
            "the path of this checkout is too long",
            f"{stack.state} has {len(str(stack.state))} characters, Unix sockets allow {LONGEST_FOLDER}",
            "move the checkout to a shorter path",
        )
    for folder in ("artifacts", "postgres", "zipapps"):
        (stack.state / folder).mkdir(parents=True, exist_ok=True)


def _tools() -> tools.Tools:
    found = tools.ensure()
    for note in found.notes:
        say(f"  note: {note}")
    return found


def build(stack: Stack) -> dict[str, zipapps.Artifact]:
    """Generates the stubs, builds the zipapp of each service, and unpacks it for this machine."""
    with step("zipapps", "20 s the first time") as now:
        protos.generate()
        artifacts = zipapps.build(stack.state)
        zipapps.unpack(stack.state, artifacts.values())
        now.result = ", ".join(f"{artifact.name} {artifact.version}" for artifact in artifacts.values())
    return artifacts


def _start_agents(stack: Stack, found: tools.Tools, clients: Clients) -> int:
    """Starts Vault and Consul in parallel, then Nomad, once Consul accepts its token."""
    changed = 0
    vault, consul, nomad_agent = agents.agents(stack, found)
    with step("agents: vault, consul", "6 s") as now:
        started = [agent.name for agent in (vault, consul) if agents.start(stack, agent)]
        for agent in (vault, consul):
            agents.wait(stack, agent)
        now.result = f"started {', '.join(started)}" if started else "running"
    changed += _apply("consul: tokens of the agents", lambda: _retried(Consul(stack, clients).agent_changes))
    with step("agents: nomad", "6 s") as now:
        restarted = agents.start(stack, nomad_agent)
        agents.wait(stack, nomad_agent)
        now.result = "started" if restarted else "running"
    return changed + len(started) + restarted


def _wait_for_node(stack: Stack, found: tools.Tools, server: Nomad) -> None:
    """Returns once the client of the agent is registered; restarts an agent without work until then.

    A client that registers before the server's keyring is open retries only after half a minute. An agent that ends
    before it is registered fails every allocation whose identities have expired meanwhile, so that one is waited for.
    """
    agent = agents.agents(stack, found)[-1]
    for _ in range(0 if server.has_work() else 5):
        if poll(server.has_node, 4):
            return
        agents.daemon(stack, agent.name).stop()
        agents.start(stack, agent)
        agents.wait(stack, agent)
    failure = StackError("Nomad has no ready node", "waited 60 s", "./justw logs nomad")
    wait_until(server.has_node, 60, lambda: failure)


def _apply(title: str, changes: Callable[[], Iterable[Change]]) -> int:
    """Applies the changes one by one, since a later one may need an earlier one; prints their notes."""
    notes: list[str] = []

    def noted() -> Iterator[Change]:
        for change in changes():
            notes.extend(change.notes)
            yield change

    with step(title) as now:
        count = apply_all(noted())
        now.result = f"{count} changed" if count else "as in the files"
    for note in notes:
        say(f"    {note}")
    return count


def _retried(changes: Callable[[], Iterable[Change]], seconds: float = 30) -> Iterator[Change]:
    """Yields the changes; each is retried while the server that it needs is starting."""
    for change in retry(lambda: list(changes()), seconds, _is_starting):
        yield replace(change, apply=partial(retry, change.apply, seconds, _is_starting))


def _is_starting(error: Exception) -> bool:
    return isinstance(error, (ConsulException, VaultError, requests.ConnectionError))


def _run_jobs(server: Nomad, names: list[str]) -> int:
    """Registers every job that differs, then waits for each: the jobs start in parallel."""
    for name in names:
        server.require_ports(name)
    changed = [name for name in names if apply_all(server.change(name))]
    replaced = 0
    for name in names:
        with step(f"job {name}", "10 s") as now:
            again = 0 if name in changed else _repair(server, name, now)
            server.wait_healthy(name, report=partial(_report, now))
            now.result = "healthy, new version" if name in changed else "healthy"
            replaced += again
    return len(changed) + replaced


def _report(now: Step, cause: str) -> None:
    now.note(f"not healthy yet: {cause}")


def _repair(server: Nomad, name: str, now: Step) -> int:
    """Replaces the instances of an unchanged job that cannot become healthy by themselves; returns their number."""
    if server.retry_failed(name):
        now.note(f"the deployment of {name} had failed; it is started again")
        return 1
    count = 0
    for change in server.replacements(name):
        for note in change.notes:
            now.note(f"{note}; it is replaced")
        change.apply()
        count += 1
    return count


def _smoke_test(stack: Stack, changed: int) -> None:
    """Places an order if anything changed; an unchanged system only has to be ready."""
    with step("smoke test", "2 s") as now:
        now.result = smoke_test.place_an_order(stack) if changed else smoke_test.ready(stack)


def _print_addresses(stack: Stack) -> None:
    https = f"     {stack.url('gateway_https')}/docs" if nomad.is_in_mesh("gateway") else ""
    say(f"""
  gateway     {stack.url("gateway")}/docs{https}
  telemetry   {stack.url("telemetry")}
  Nomad       {stack.url("nomad")}/ui
  Consul      {stack.url("consul")}/ui
  Vault       {stack.url("vault")}/ui
  tokens      eval "$(./justw env)"     state: ./justw status""")
