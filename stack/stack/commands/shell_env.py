"""`env`: prints the addresses and operator credentials of a stack as lines that a shell can eval."""

from __future__ import annotations

import shlex

from stack.cluster.agents import require_running
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say


def variables(stack: Stack) -> dict[str, str]:
    """Returns the values by name; the Vault token is a new one that expires after 8 h."""
    require_running(stack)
    clients = Clients(stack)
    try:
        vault_token = clients.vault.token
    except OSError as error:
        raise StackError("Vault does not answer", str(error)[:200], "./justw deploy") from error
    return {
        "GATEWAY_URL": stack.url("gateway"),
        "NOMAD_ADDR": stack.url("nomad"),
        "NOMAD_TOKEN": clients.credentials.token("nomad-management"),
        "CONSUL_HTTP_ADDR": stack.url("consul"),
        "CONSUL_HTTP_TOKEN": clients.credentials.token("consul-management"),
        "VAULT_ADDR": stack.url("vault"),
        "VAULT_TOKEN": vault_token,
        "TELEMETRY_URL": stack.url("telemetry"),
    }


def exports(stack: Stack) -> None:
    """Prints an export line for each variable."""
    for name, value in variables(stack).items():
        say(f"export {name}={shlex.quote(value)}")
