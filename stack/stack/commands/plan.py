"""`plan`: shows what `deploy` would change in Consul, Vault and Nomad; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from stack.build import tools, zipapps
from stack.cluster import nomad
from stack.cluster.agents import require_running
from stack.cluster.clients import Clients
from stack.cluster.consul import Consul
from stack.cluster.nomad import Nomad
from stack.cluster.planned_changes import Change
from stack.cluster.vault import Vault
from stack.config import Stack
from stack.console import say

CHANGES = 2
_SIGNS = {"add": "+", "change": "~", "remove": "-"}


def plan(stack: Stack, as_json: bool = False) -> int:
    """Prints the changes as a diff or as JSON; returns 0 for none, 2 for some."""
    require_running(stack)
    found = tools.installed()
    changes = list(_changes(stack, found))
    changing = {change.where for change in changes}
    by_hand = Consul(stack, Clients(stack)).seed.changed_by_hand()
    kept = [key for key in by_hand if f"consul kv {key}" not in changing]
    if as_json:
        say(json.dumps(document(changes, kept, found.notes), indent=2))
    else:
        for line in text(changes, kept, found.notes):
            say(line)
    return CHANGES if changes else 0


def document(changes: Sequence[Change], kept: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """Returns the plan in its JSON form."""
    rows = [
        {
            "where": change.where,
            "action": change.action,
            "before": change.before,
            "after": change.after,
            "notes": list(change.notes),
        }
        for change in changes
    ]
    return {"changes": rows, "kept": list(kept), "notes": list(notes)}


def text(changes: Sequence[Change], kept: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    """Yields the plan for a person."""
    for note in notes:
        yield f"note: {note}"
    for change in changes:
        yield f"{_SIGNS[change.action]} {change.where}"
        if diff := change.diff():
            yield diff
        yield from (f"    {note}" for note in change.notes)
    for key in kept:
        yield f"= consul kv {key} was changed by hand and is kept"
    yield f"{len(changes)} changes" if changes else "no change"


def _changes(stack: Stack, found: tools.Tools) -> Iterator[Change]:
    clients = Clients(stack)
    consul, vault = Consul(stack, clients), Vault(stack, clients)
    yield from consul.agent_changes()
    yield from consul.changes()
    yield from vault.changes()
    yield from vault.database_changes()
    server = Nomad(stack, clients, found, zipapps.build(stack.state))
    for name in nomad.deployable(found):
        yield from server.change(name)
