"""`plan`: shows what `deploy` would change in Consul, Vault and Nomad, and what does not run; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from stack.build import tools, zipapps
from stack.cluster import nomad
from stack.cluster.agents import require_running
from stack.cluster.clients import Clients
from stack.cluster.consul import Consul
from stack.cluster.job_health.problem import Problem
from stack.cluster.mesh.changes import mesh_changes
from stack.cluster.nomad import Nomad
from stack.cluster.planned_changes import Change
from stack.cluster.vault import Vault
from stack.config import Stack
from stack.console import say
from stack.waiting import poll

CHANGES = 2
_SIGNS = {"add": "+", "change": "~", "remove": "-"}


def plan(stack: Stack, as_json: bool = False) -> int:
    """Prints the changes as a diff or as JSON; returns 0 for none, 2 for some."""
    require_running(stack)
    found = tools.installed()
    clients = Clients(stack)
    server = Nomad(stack, clients, found, zipapps.build(stack.state))
    changes = list(_changes(stack, clients, server, nomad.deployable(found)))
    stopped = not_running(server.problems, nomad.deployable(found))
    changing = {change.where for change in changes}
    by_hand = Consul(stack, clients).seed.changed_by_hand()
    kept = [key for key in by_hand if f"consul kv {key}" not in changing]
    if as_json:
        say(json.dumps(document(changes, kept, found.notes, stopped), indent=2))
    else:
        for line in text(changes, kept, found.notes, stopped):
            say(line)
    return CHANGES if changes else 0


def not_running(problems: Callable[[str], list[Problem]], names: Sequence[str], seconds: float = 3) -> list[Problem]:
    """Returns why jobs do not run completely; a job that becomes healthy within some seconds is not listed."""

    def everything_runs() -> bool:
        found.update({name: problems(name) for name in names if found.get(name, True)})
        return not any(found.values())

    found: dict[str, list[Problem]] = {}
    poll(everything_runs, seconds, interval=1)
    return [problem for name in names for problem in found[name]]


def document(
    changes: Sequence[Change], kept: Sequence[str], notes: Sequence[str], stopped: Sequence[Problem] = ()
) -> dict[str, Any]:
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
    return {
        "changes": rows,
        "kept": list(kept),
        "notes": list(notes),
        "problems": [asdict(problem) for problem in stopped],
    }


def text(
    changes: Sequence[Change], kept: Sequence[str], notes: Sequence[str], stopped: Sequence[Problem] = ()
) -> Iterator[str]:
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
    for problem in stopped:
        yield f"! does not run: {problem.text}"
        yield f"    next: {problem.remedy}"
    summary = f"{len(changes)} change{'' if len(changes) == 1 else 's'}" if changes else "no change"
    yield f"{summary}, but not everything runs" if stopped else summary


def _changes(stack: Stack, clients: Clients, server: Nomad, names: Sequence[str]) -> Iterator[Change]:
    consul, vault = Consul(stack, clients), Vault(stack, clients)
    yield from consul.agent_changes()
    yield from consul.changes()
    yield from vault.changes()
    yield from mesh_changes(stack, clients)
    yield from vault.database_changes()
    for name in names:
        changed = list(server.change(name))
        yield from changed or server.replacements(name)
