"""A Consul of its own and Envoy sidecars, as it configures them, between a caller and a service; all on loopback."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from bench.setup.processes import Server, free_port, serving
from support.stack_under_test import eventually

from stack.build import tools
from stack.cluster.mesh.config_entries import FILES, FOLDERS, read

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Consul:
    """A server without ACL that denies what no intention allows; `envoy` is the program of the sidecars."""

    program: str
    envoy: str
    ports: Mapping[str, int]

    def put(self, path: str, body: Any) -> None:
        url = f"http://{_HOST}:{self.ports['http']}/v1/{path}"
        httpx.put(url, json=body, timeout=10, trust_env=False).raise_for_status()

    def has_leader(self) -> bool:
        url = f"http://{_HOST}:{self.ports['http']}/v1/status/leader"
        return ":" in httpx.get(url, timeout=10, trust_env=False).text


@dataclass(frozen=True)
class Sidecars:
    """The sidecar of the caller, which it reaches at `upstream`, and that of the service, at `public`."""

    caller: Server
    service: Server

    @property
    def upstream(self) -> str:
        return self.caller.address

    @property
    def public(self) -> str:
        return self.service.address

    def pids(self) -> list[int]:
        return [*self.caller.pids(), *self.service.pids()]


@contextmanager
def consul_agent(service: str) -> Iterator[Consul]:
    """Starts Consul with the shipped config entries of a service."""
    program, envoy = tools.find("consul"), tools.find("envoy")
    if program is None or envoy is None:
        raise SystemExit("needs Consul and Envoy: ./justw deploy builds the one, uv sync --group servers has the other")
    ports = {name: free_port() for name in ("http", "grpc", "server", "serf_lan", "serf_wan")}
    with tempfile.TemporaryDirectory(prefix="waypost-bench-") as folder:
        config = {
            "data_dir": f"{folder}/data",
            "server": True,
            "bootstrap_expect": 1,
            "bind_addr": _HOST,
            "ports": {**ports, "dns": -1, "grpc_tls": -1},
            "connect": {"enabled": True},
            "default_intention_policy": "deny",
            "performance": {"raft_multiplier": 1},
            "log_level": "WARN",
        }
        file = Path(folder) / "agent.json"
        file.write_text(json.dumps(config))
        with serving([str(program), "agent", f"-config-file={file}"], ports["http"]):
            found = Consul(str(program), str(envoy), ports)
            eventually("Consul has a leader", found.has_leader, 30)
            for kind, entries in FOLDERS.items():
                found.put("config", read(FILES / entries / f"{service}.hcl", kind))
            yield found


@contextmanager
def sidecars(consul: Consul, caller: str, service: str, address: str) -> Iterator[Sidecars]:
    """Puts a sidecar beside each of both; the service speaks plaintext at `address`."""
    upstream, public = free_port(), free_port()
    proxy = {"Upstreams": [{"DestinationName": service, "LocalBindPort": upstream}]}
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        _register(consul, service, {"Port": public}, Address=host, Port=int(port))
        called = stack.enter_context(_envoy(consul, service, public))
        _register(consul, caller, {"Port": free_port(), "Proxy": proxy})
        yield Sidecars(stack.enter_context(_envoy(consul, caller, upstream)), called)


def _register(consul: Consul, name: str, sidecar: Mapping[str, Any], **fields: Any) -> None:
    connect = {"SidecarService": {"Address": _HOST, "Checks": [], **sidecar}}
    consul.put("agent/service/register", {"Name": name, "Connect": connect, **fields})


@contextmanager
def _envoy(consul: Consul, name: str, port: int) -> Iterator[Server]:
    """Runs the sidecar of a service with one worker thread, as a job of Nomad does, until the block ends."""
    ports = {f"-{kind}-addr": f"{_HOST}:{consul.ports[kind]}" for kind in ("http", "grpc")}
    chosen = {"-sidecar-for": name, "-admin-bind": f"{_HOST}:{free_port()}", **ports}
    options = [f"{option}={value}" for option, value in chosen.items()]
    command = [consul.program, "connect", "envoy", *options, "-ignore-envoy-compatibility", "-bootstrap"]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        file.flush()
        settings = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        with serving([consul.envoy, "--config-path", file.name, *settings], port) as server:
            yield server
