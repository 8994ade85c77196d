"""`plan`: what `deploy` would change in Consul, Vault and Nomad, as a diff; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from stack.build import tools, zipapps
from stack.cluster import nomad
from stack.cluster.agents import require_running
from stack.cluster.changes import Change
from stack.cluster.clients import Clients
from stack.cluster.consul import Consul
from stack.cluster.nomad import Nomad
from stack.cluster.vault import Vault
from stack.config import Stack
from stack.console import say

CHANGES = 2


def plan(stack: Stack) -> int:
    """Prints the changes; 0 for none, 2 for some."""
    require_running(stack)
    there = tools.there()
    for note in there.notes:
        say(f"note: {note}")
    found = list(_changes(stack, there))
    for change in found:
        say(f"{_sign(change)} {change.where}\n{change.diff()}")
    for key in Consul(stack, Clients(stack)).live_edits():
        say(f"= consul kv {key} was changed by hand and is kept")
    say(f"{len(found)} changes" if found else "no change")
    return CHANGES if found else 0


def _sign(change: Change) -> str:
    return "~" if change.before and change.after else "-" if change.before else "+"


def _changes(stack: Stack, found: tools.Tools) -> Iterator[Change]:
    clients = Clients(stack)
    consul, vault = Consul(stack, clients), Vault(stack, clients)
    yield from consul.agent_changes()
    yield from consul.changes()
    yield from vault.changes()
    yield from vault.database_changes()
    server = Nomad(stack, clients, found, zipapps.build(stack.state))
    for name in nomad.names():
        if name != "telemetry" or found.telemetry:
            yield from server.change(name)
