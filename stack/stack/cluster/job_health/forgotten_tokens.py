"""Finds allocations whose Consul token is unknown to Consul, for example after the restore of an older snapshot.

Nomad logs in once for the services of an allocation and once for the templates of a task, and never again. Without its
token, a registration is refused until the allocation is replaced. Reads the agent's own copy of each registration, and
the token that Nomad leaves in the secrets of a task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consul import ACLPermissionDenied

from stack.config import Stack

_ALLOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def allocation_of(service_id: str) -> str:
    """Returns the allocation that Nomad names in the id of a service; empty for a service of an agent."""
    match = _ALLOCATION.search(service_id)
    return match[0] if match else ""


def forgotten(stack: Stack, consul: Any, allocations: set[str]) -> dict[str, str]:
    """Returns those of the running `allocations` that have an unknown token, each with the effect."""
    return {
        allocation: f"Consul does not know its token, {effect}"
        for allocation, token, effect in (*_of_services(stack), *_of_templates(stack, allocations))
        if allocation in allocations and not _knows(consul, token)
    }


def _of_services(stack: Stack) -> Iterator[tuple[str, str, str]]:
    for file in (stack.state / "consul" / "data" / "services").glob("*"):  # fragile: consul-service-files
        found = _json(file)
        service = found.get("Service") or {}
        if found.get("Token") and (allocation := allocation_of(service.get("ID", ""))):
            yield allocation, found["Token"], f"so it cannot register service {service['Service']}"


def _of_templates(stack: Stack, allocations: set[str]) -> Iterator[tuple[str, str, str]]:
    for allocation in allocations:
        folder = stack.state / "nomad" / "data" / "alloc" / allocation
        for file in folder.glob("*/secrets/consul_token"):
            yield allocation, file.read_text().strip(), f"so the templates of task {file.parts[-3]} cannot read Consul"


def _json(file: Path) -> dict[str, Any]:
    """Returns the content of a file of the agent; empty if the agent has just removed or is writing it.

    A folder is empty too: the agent keeps the config entries of the proxies of services in one.
    """
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _knows(consul: Any, token: str) -> bool:
    try:
        consul.acl.tokens.self(token=token)
    except ACLPermissionDenied:
        return False
    return True
