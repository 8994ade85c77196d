"""Private OpenBao and Consul servers for tests: on free ports, stopped when the block ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stack.build import tools
from stack.machine import processes

ROOT_TOKEN = "root-token-of-the-test"


@dataclass
class Server:
    """A server that can be killed and started again with the same ports and data."""

    command: list[str]
    url: str
    ready: str
    header: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=_environment())
        ends_at = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < ends_at, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """Kills the server, and what it has started: processes of an agent outlive it."""
        if self.process is not None:
            started = processes.family([self.process.pid]) - {self.process.pid}
            self.process.kill()
            self.process.wait(10)
            processes.end(sorted(started), 5)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP for a while: the kernel accepts connections, and nothing answers."""
        assert self.process is not None
        processes.pause(self.process.pid)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Seals an OpenBao for a while: it answers, and rejects every request."""
        keys = re.findall(r"^Unseal Key: (\S+)", self.log.read_text(), re.MULTILINE)
        self.call("POST", "/v1/sys/seal")
        try:
            yield
        finally:
            self.call("POST", "/v1/sys/unseal", {"key": keys[-1]})

    def call(self, method: str, path: str, body: Mapping[str, Any] | str | None = None) -> Any:
        content = body if isinstance(body, str) or body is None else json.dumps(body)
        answer = httpx.request(
            method, self.url + path, content=content, headers={self.header: ROOT_TOKEN}, timeout=10, trust_env=False
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url + self.ready, timeout=1, trust_env=False).text not in ('""', "")
        except httpx.HTTPError:
            return False


@contextmanager
def openbao(folder: Path) -> Iterator[Server]:
    """Start a development server: unsealed, in memory, with a known root token."""
    port = free_port()
    bao = str(Path(sys.executable).parent / "bao")
    command = [
        bao,
        "server",
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}",
    ]
    yield from _running(Server(command, f"http://127.0.0.1:{port}", "/v1/sys/health", "X-Vault-Token", folder / "bao"))


@contextmanager
def consul(folder: Path) -> Iterator[Server]:
    """Start a single server with data on disk, deny by default, and one management token."""
    ports = {name: free_port() for name in ("http", "server", "serf_lan", "serf_wan")}
    settings = {
        "data_dir": str(folder / "data"),
        "server": True,
        "bootstrap_expect": 1,
        "bind_addr": "127.0.0.1",
        "ports": ports | {"dns": -1, "grpc": -1, "grpc_tls": -1},
        "acl": {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"initial_management": ROOT_TOKEN, "agent": ROOT_TOKEN},
        },
        "performance": {"raft_multiplier": 1},
        "log_level": "WARN",
    }
    (folder / "consul.json").write_text(json.dumps(settings))
    command = [str(tools.find("consul")), "agent", f"-config-file={folder / 'consul.json'}"]
    url = f"http://127.0.0.1:{ports['http']}"
    yield from _running(Server(command, url, "/v1/status/leader", "X-Consul-Token", folder / "consul.log"))


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Return an environment without tokens and addresses of the developer; the home is for files of a dev server."""
    return {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir()}
