"""Starts the three agents of a stack: OpenBao, Consul and Nomad.

Each reads two files: one in the repository, and one in the state folder with the ports, folders and tokens of this
stack.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stack.build.tools import Tools
from stack.cluster.credentials import Credentials
from stack.config import ROOT, Stack
from stack.console import StackError
from stack.machine import secret_folders
from stack.machine.daemons import Daemon
from stack.machine.ports import require_free

NAMES = ("vault", "consul", "nomad")
HOST = "127.0.0.1"
# Agents are configured by files; other variables of the caller's shell must not change them.
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class Agent:
    """An agent: its command, the configuration that depends on the stack, and its readiness check."""

    name: str
    command: tuple[str, ...]
    config: dict[str, Any]
    ready: Callable[[], bool]
    prepare: Callable[[], object] = lambda: None
    """Called before it starts."""


def agents(stack: Stack, tools: Tools) -> list[Agent]:
    """Returns all agents in the order in which they start."""
    return [_vault(stack, tools), _consul(stack, tools), _nomad(stack, tools)]


def daemon(stack: Stack, name: str) -> Daemon:
    """Returns the background process of an agent."""
    return Daemon(name, stack.logs)


def require_running(stack: Stack) -> None:
    """Raises StackError if an agent of this stack does not run: another stack may use its ports."""
    for name in NAMES:
        if daemon(stack, name).pid() is None:
            raise StackError(f"stack {stack.name!r} is not running", f"its {name} does not run", "./justw deploy")


def require_ports(stack: Stack) -> None:
    """Raises StackError if a port of an agent that does not run yet is taken."""
    for name in NAMES:
        if daemon(stack, name).pid() is None:
            _require_ports(stack, name)


def _require_ports(stack: Stack, name: str) -> None:
    for port, number in stack.ports().items():
        if port.partition("_")[0] == name:
            require_free(number, port)


def start(stack: Stack, agent: Agent) -> bool:
    """Starts an agent, restarts it if its configuration changed; returns False if neither was necessary."""
    process = daemon(stack, agent.name)
    process.shorten_log()
    changed = _render(stack, agent)
    if process.pid() is not None and not changed:
        return False
    process.stop()
    _require_ports(stack, agent.name)
    home = stack.state / agent.name
    env = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    # Nomad leaves a socket for each task in the temporary folder; `destroy` removes this one.
    temporary = stack.state / "tmp"
    temporary.mkdir(exist_ok=True)
    agent.prepare()
    env["TMPDIR"] = str(temporary)
    process.start([*agent.command, *_config_flags(stack, agent)], home, env)
    return True


def wait(stack: Stack, agent: Agent) -> None:
    """Returns once the agent is ready."""
    daemon(stack, agent.name).wait(agent.ready, seconds=60)


def _config_file(stack: Stack, agent: Agent) -> Path:
    return stack.state / agent.name / "stack.json"


def _config_flags(stack: Stack, agent: Agent) -> list[str]:
    source = ROOT / agent.name / ("server.hcl" if agent.name == "vault" else "agent.hcl")
    flag = "-config-file" if agent.name == "consul" else "-config"
    return [flag, str(source), flag, str(_config_file(stack, agent))]


def _render(stack: Stack, agent: Agent) -> bool:
    file = _config_file(stack, agent)
    (file.parent / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    source = Path(_config_flags(stack, agent)[1]).read_text()
    text = json.dumps(agent.config, indent=2) + "\n"
    # Kept next to it, so that an edited file in the repository also restarts the agent.
    stamp, started_with = file.with_suffix(".source"), source + " ".join(agent.command)
    if file.exists() and file.read_text() == text and stamp.exists() and stamp.read_text() == started_with:
        return False
    file.touch(mode=0o600)
    file.write_text(text)
    stamp.write_text(started_with)
    return True


def _answers(url: str, accept: Callable[[httpx.Response], bool]) -> bool:
    try:
        return accept(httpx.get(url, timeout=2))
    except httpx.HTTPError:
        return False


def _has_leader(base: str) -> bool:
    return _answers(f"{base}/v1/status/leader", lambda reply: reply.status_code == 200 and ":" in reply.text)


def _vault(stack: Stack, tools: Tools) -> Agent:
    credentials = Credentials(stack)
    home = stack.state / "vault"
    config = {
        "api_addr": stack.url("vault"),
        "cluster_addr": stack.url("vault_cluster"),
        "listener": [
            {
                "tcp": {
                    "address": f"{HOST}:{stack.port('vault')}",
                    "cluster_address": f"{HOST}:{stack.port('vault_cluster')}",
                    "tls_disable": True,
                }
            }
        ],
        "storage": {"raft": {"path": str(home / "data"), "node_id": "waypost-1", "performance_multiplier": "1"}},
        "seal": {"static": {"current_key_id": "1", "current_key": f"file://{credentials.unseal_key()}"}},
    }
    # The self-initialisation in server.hcl reads the password from the working directory.
    link = home / "operator-password"
    home.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(credentials.operator_password())
    return Agent(
        "vault",
        (str(tools.bao), "server"),
        config,
        lambda: _answers(f"{stack.url('vault')}/v1/sys/health", lambda reply: reply.status_code == 200),
    )


def _consul(stack: Stack, tools: Tools) -> Agent:
    credentials = Credentials(stack)
    # Consul creates the first of these tokens itself; `deploy` creates the other one.
    tokens = {
        "initial_management": credentials.token("consul-management"),
        "agent": credentials.token("consul-agent"),
    }
    names = {
        "http": "consul",
        "server": "consul_server",
        "serf_lan": "consul_serf_lan",
        "serf_wan": "consul_serf_wan",
        "grpc": "consul_grpc",
        "dns": "consul_dns",
    }
    config = {
        "data_dir": str(stack.state / "consul" / "data"),
        "ports": {key: stack.port(name) for key, name in names.items()} | {"grpc_tls": -1},
        "acl": {"tokens": tokens},
    }
    return Agent(
        "consul",
        (str(tools.consul), "agent"),
        config,
        lambda: _has_leader(stack.url("consul")),
    )


def _nomad(stack: Stack, tools: Tools) -> Agent:
    ports = {"http": "nomad", "rpc": "nomad_rpc", "serf": "nomad_serf"}
    first, last = stack.dynamic_ports
    config = {
        "data_dir": str(stack.state / "nomad" / "data"),
        "ports": {key: stack.port(name) for key, name in ports.items()},
        "advertise": {key: f"{HOST}:{stack.port(name)}" for key, name in ports.items()},
        "client": {
            "min_dynamic_port": first,
            "max_dynamic_port": last,
            "options": {"driver.allowlist": "raw_exec,exec" if tools.exec_driver else "raw_exec"},
        },
        "consul": {
            "address": f"{HOST}:{stack.port('consul')}",
            "token": Credentials(stack).token("consul-nomad-agent"),
        },
        "vault": {"address": stack.url("vault")},
    }
    return Agent(
        "nomad",
        (str(tools.nomad), "agent"),
        config,
        lambda: _has_leader(stack.url("nomad")),
        lambda: secret_folders.mount_again(stack.state / "nomad" / "data" / "alloc"),
    )
