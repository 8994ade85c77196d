"""A second node of a running stack on this machine, whose allocations have networks of their own (bridge mode).

It is an agent of Consul and one of Nomad, in a node pool of its own. Its address belongs to an interface made for it,
because the network of an allocation does not reach loopback. It needs root and CNI plugins, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stack.build import tools
from stack.cluster.clients import Clients
from stack.machine import processes
from stack.machine.daemons import Daemon

POOL = "bridge"
_HOST = "127.0.0.1"
_INTERFACE, _BRIDGE = "waypost-node{}", "waypost-alloc{}"  # by slot
_PLUGINS = ("bridge", "firewall", "host-local", "loopback", "portmap")
_FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# Ports that no stack uses (stack/stack/config.py), below those that the kernel assigns itself; as many for each slot.
_FIRST_PORT, _PORTS = 32_000, 75


def why_not() -> str:
    """Returns why this machine cannot be such a node, and the next step; empty if it can."""
    if os.geteuid() != 0:
        return "networks of allocations need root; next step: run this test as root"
    if _plugins() is None:
        places = " or ".join(map(str, _FOLDERS))
        return f"there are no CNI plugins in {places}; next step: apt-get install containernetworking-plugins"
    for program, package in (("ip", "iproute2"), ("iptables", "iptables"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"there is no {program}; next step: apt-get install {package}"
    return ""


@dataclass(frozen=True)
class BridgeNode:
    """The node, once it is ready for allocations."""

    clients: Clients
    name: str
    address: str

    def in_network(self, allocation: str, command: list[str]) -> str:
        """Runs a command in the network of an allocation and returns its output."""
        return _run("nsenter", f"--net=/run/netns/{allocation}", *command)


@contextmanager
def bridge_node(clients: Clients) -> Iterator[BridgeNode]:
    """Adds the node to the stack until the block ends; by then nothing may run on it."""
    with ExitStack() as stack:
        name = f"waypost-{secrets.token_hex(4)}"
        # Short, because the path of a socket below it has at most 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(_network(clients.stack.slot))
        first = _FIRST_PORT + _PORTS * clients.stack.slot
        ports = {"http": first, "grpc": first + 1, "serf_lan": first + 2}
        stack.enter_context(_consul(clients, name, folder / "consul", ports))
        stack.enter_context(_nomad(clients, name, folder / "nomad", ports, first + 3))
        yield BridgeNode(clients, name, address)


@contextmanager
def _network(slot: int) -> Iterator[str]:
    """Makes an interface and yields its address; at the end nothing of it and of the allocations' networks is left."""
    address, before, forwards = f"10.213.{slot}.1", set(_chains()), _FORWARD.read_text()
    interface, bridge = _INTERFACE.format(slot), _BRIDGE.format(slot)
    _run("ip", "link", "add", interface, "type", "bridge")
    try:
        _run("ip", "address", "add", f"{address}/32", "dev", interface)
        _run("ip", "link", "set", interface, "up")
        yield address
    finally:
        for name in (interface, bridge):
            subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
        _remove_chains(before)
        _FORWARD.write_text(forwards)


def _chains() -> Iterator[tuple[str, str]]:
    """Yields table and name of each chain of iptables."""
    for table in ("filter", "nat"):
        for line in _run("iptables", "-w", "-t", table, "-S").splitlines():
            if line.startswith("-N "):
                yield table, line.removeprefix("-N ")


def _remove_chains(kept: set[tuple[str, str]]) -> None:
    """Removes the chains of CNI and Nomad, and the rules that lead to them."""
    added = set(_chains()) - kept
    for table in {table for table, _ in added}:
        names = {name for each, name in added if each == table}
        for line in _run("iptables", "-w", "-t", table, "-S").splitlines():
            command, *rule = shlex.split(line)
            if command == "-A" and names & set(rule):
                _run("iptables", "-w", "-t", table, "-D", *rule)
        for name in names:
            _run("iptables", "-w", "-t", table, "-X", name)


@contextmanager
def _consul(clients: Clients, name: str, folder: Path, ports: dict[str, int]) -> Iterator[None]:
    tokens = clients.consul.acl.tokens
    identity = [{"NodeName": name, "Datacenter": "dc1"}]
    token = tokens.create({"Description": f"agent of {name}", "NodeIdentities": identity})
    config = {
        "node_name": name,
        "datacenter": "dc1",
        "data_dir": str(folder / "data"),
        "bind_addr": _HOST,
        "client_addr": _HOST,
        "log_level": "WARN",
        "disable_update_check": True,
        "retry_join": [f"{_HOST}:{clients.stack.port('consul_serf_lan')}"],
        "retry_interval": "1s",
        "ports": ports | {"dns": -1, "grpc_tls": -1},
        "acl": {"enabled": True, "default_policy": "deny", "tokens": {"agent": token["SecretID"]}},
        "connect": {"enabled": True},
    }
    members = lambda: {each["Name"] for each in clients.consul.agent.members() if each["Status"] == 1}  # noqa: E731
    try:
        with _agent("consul", folder, config, lambda: name in members()):
            yield
    finally:
        _forget(clients, name)
        tokens.delete(token["AccessorID"])


@contextmanager
def _nomad(clients: Clients, name: str, folder: Path, consul: dict[str, int], first_port: int) -> Iterator[None]:
    identity, slot = {"aud": ["consul.io"], "ttl": "1h"}, clients.stack.slot
    ports = {"http": first_port, "rpc": first_port + 1, "serf": first_port + 2}
    config = {
        "name": name,
        "datacenter": "dc1",
        "data_dir": str(folder / "data"),
        "bind_addr": _HOST,
        "log_level": "WARN",
        "disable_update_check": True,
        "ports": ports,
        "advertise": {name: f"{_HOST}:{port}" for name, port in ports.items()},
        "acl": {"enabled": True},
        "client": {
            "enabled": True,
            "servers": [f"{_HOST}:{clients.stack.port('nomad_rpc')}"],
            "node_pool": POOL,
            "network_interface": _INTERFACE.format(slot),
            "bridge_network_name": _BRIDGE.format(slot),
            "bridge_network_subnet": f"10.214.{16 * slot}.0/20",
            "cni_path": str(_with_versions(folder / "cni")),
            "min_dynamic_port": first_port + 3,
            "max_dynamic_port": first_port + _PORTS - 4,
            "options": {
                "driver.allowlist": "raw_exec",
                "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
            },
        },
        "plugin": [{"raw_exec": {"config": {"enabled": True}}}],
        "consul": {
            "address": f"{_HOST}:{consul['http']}",
            "grpc_address": f"{_HOST}:{consul['grpc']}",
            "token": clients.credentials.token("consul-nomad-agent"),
            "auto_advertise": False,
            "client_auto_join": False,
            "service_auth_method": "nomad-services",
            "task_auth_method": "nomad-templates",
            "service_identity": identity,
            "task_identity": identity,
        },
    }
    found: list[str] = []

    def ready() -> bool:
        nodes = clients.nomad.nodes.get_nodes()
        found[:] = [node["ID"] for node in nodes if node["Name"] == name and node["Status"] == "ready"]
        return bool(found)

    try:
        with _agent("nomad", folder, config, ready):
            try:
                yield
            finally:
                _collect(first_port, clients.credentials.token("nomad-management"))
                processes.end(sorted(processes.belonging(folder / "data")), 10)
    finally:
        for node in found:
            clients.nomad.node.purge_node(node)


@contextmanager
def _agent(name: str, folder: Path, config: dict[str, Any], ready: Callable[[], bool]) -> Iterator[None]:
    program, consul = tools.find(name), tools.find("consul")
    assert program is not None
    assert consul is not None
    (folder / "data").mkdir(parents=True)
    file = folder / "agent.json"
    file.write_text(json.dumps(config))
    # Nomad runs the program `consul` for the configuration of a sidecar.
    path = os.pathsep.join([str(consul.parent), os.environ["PATH"]])
    daemon = Daemon(name, folder)
    flag = "-config-file" if name == "consul" else "-config"
    daemon.start([str(program), "agent", flag, str(file)], folder, {"PATH": path, "HOME": str(folder)})
    try:
        daemon.wait(ready, 60)
        yield
    finally:
        daemon.stop()


def _forget(clients: Clients, name: str) -> None:
    """Removes a member that has left from Consul's list, where it would stay for three days."""
    url = f"{clients.stack.url('consul')}/v1/agent/force-leave/{name}?prune=1"
    headers = {"X-Consul-Token": clients.credentials.token("consul-management")}
    httpx.put(url, headers=headers, timeout=10, trust_env=False).raise_for_status()


def _collect(port: int, token: str) -> None:
    """Has Nomad forget what it ran, and with it the mounts of its tasks."""
    url, headers = f"http://{_HOST}:{port}/v1/client/gc", {"X-Nomad-Token": token}
    httpx.get(url, headers=headers, timeout=30, trust_env=False).raise_for_status()


def _plugins() -> Path | None:
    return next((folder for folder in _FOLDERS if all((folder / name).exists() for name in _PLUGINS)), None)


def _with_versions(folder: Path) -> Path:
    """Makes plugins that name a version: Nomad uses no others, and those of Debian say that theirs is unknown."""
    found = _plugins()
    assert found is not None
    folder.mkdir(parents=True)
    for name in _PLUGINS:
        plugin = folder / name
        version = f"{found / name} 2>&1 | sed 's/version unknown/v1.0.0/'"
        plugin.write_text(f'#!/bin/sh\n[ -n "$CNI_COMMAND" ] || {{ {version}; exit; }}\nexec {found / name}\n')
        plugin.chmod(0o755)
    return folder


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
