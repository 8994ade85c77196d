"""A Consul of its own, and Envoy sidecars as it configures them beside a caller and a service; all on loopback."""

from __future__ import annotations

import json
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from bench.setup.processes import Server, free_port, serving
from support.stack_under_test import eventually

from stack.build import tools
from stack.cluster.mesh.config_entries import FILES, FOLDERS, read
from stack.mesh.operator_leaf import Leaf, tls_context

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

    def get(self, path: str) -> Any:
        return httpx.get(f"http://{_HOST}:{self.ports['http']}/v1/{path}", timeout=10, trust_env=False).json()

    def tls_context(self, name: str) -> ssl.SSLContext:
        """Returns the settings of a client that shows a leaf of `name`; servers have a leaf of the same authority."""
        leaf, found = self.get(f"agent/connect/ca/leaf/{name}"), self.get("agent/connect/ca/roots")
        pem = [text.encode() for text in (leaf["PrivateKeyPEM"], leaf["CertPEM"], found["Roots"][0]["RootCert"])]
        context = tls_context(Leaf(*pem, begins=0, ends=0))
        context.check_hostname = False  # their leaves have a SPIFFE id only
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True)
class Sidecars:
    """The sidecar of the caller, which it reaches at `upstream` and others at `entrance`, and that of the service."""

    caller: Server
    entrance: int
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
def consul_agent(*services: str) -> Iterator[Consul]:
    """Starts Consul with the shipped protocols and intentions of services."""
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
            eventually("Consul has a leader", lambda: found.get("status/leader"), 30)
            for kind, service in product(("service-defaults", "service-intentions"), services):
                found.put("config", read(FILES / FOLDERS[kind] / f"{service}.hcl", kind))
            yield found


@contextmanager
def sidecars(consul: Consul, caller: tuple[str, int], upstream: int, service: tuple[str, int]) -> Iterator[Sidecars]:
    """Puts a sidecar beside each of both, which speak plaintext at their ports; the caller calls at `upstream`."""
    entrance, public = free_port(), free_port()
    proxy = {"Upstreams": [{"DestinationName": service[0], "LocalBindPort": upstream}]}
    with ExitStack() as stack:
        _register(consul, *service, {"Port": public})
        called = stack.enter_context(_envoy(consul, service[0], public))
        _register(consul, *caller, {"Port": entrance, "Proxy": proxy})
        yield Sidecars(stack.enter_context(_envoy(consul, caller[0], upstream)), entrance, called)


def _register(consul: Consul, name: str, port: int, sidecar: Mapping[str, Any]) -> None:
    connect = {"SidecarService": {"Address": _HOST, "Checks": [], **sidecar}}
    consul.put("agent/service/register", {"Name": name, "Address": _HOST, "Port": port, "Connect": connect})


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
