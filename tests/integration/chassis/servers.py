"""Private OpenBao and Consul servers for tests: on free ports, stopped when the block ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
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
    ca_file: Path | None = None
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
        headers, trust = {self.header: ROOT_TOKEN}, self._trust()
        url = self.url + path
        answer = httpx.request(method, url, content=content, headers=headers, timeout=10, trust_env=False, verify=trust)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _answers(self) -> bool:
        try:
            return self.call("GET", self.ready) not in ("", None)
        except (httpx.HTTPError, OSError):
            return False

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)


@contextmanager
def openbao(folder: Path, *, https: bool = False) -> Iterator[Server]:
    """Start a development server: unsealed, in memory, with a known root token.

    With https it makes an authority and a certificate for loopback in `folder`: vault-{ca,cert,key}.pem.
    """
    port = free_port()
    bao = str(Path(sys.executable).parent / "bao")
    command = [
        bao,
        "server",
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}",
        *(["-dev-tls", f"-dev-tls-cert-dir={folder}"] if https else []),
    ]
    url = f"{'https' if https else 'http'}://127.0.0.1:{port}"
    ca_file = folder / "vault-ca.pem" if https else None
    yield from _running(Server(command, url, "/v1/sys/health", "X-Vault-Token", folder / "bao", ca_file))


@contextmanager
def consul(folder: Path, certificates: Path | None = None) -> Iterator[Server]:
    """Start a single server with data on disk, deny by default, and one management token.

    With a folder of certificates, as `openbao` makes it, the API is https.
    """
    scheme, tls = "http", {}
    if certificates:
        names = {"ca_file": "vault-ca.pem", "cert_file": "vault-cert.pem", "key_file": "vault-key.pem"}
        scheme, tls = "https", {"tls": {"https": {name: str(certificates / file) for name, file in names.items()}}}
    ports = {name: free_port() for name in (scheme, "server", "serf_lan", "serf_wan")}
    settings = {
        "data_dir": str(folder / "data"),
        "server": True,
        "bootstrap_expect": 1,
        "bind_addr": "127.0.0.1",
        "ports": {"http": -1} | ports | {"dns": -1, "grpc": -1, "grpc_tls": -1},
        "acl": {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"initial_management": ROOT_TOKEN, "agent": ROOT_TOKEN},
        },
        "performance": {"raft_multiplier": 1},
        "log_level": "WARN",
        **tls,
    }
    (folder / "consul.json").write_text(json.dumps(settings))
    command = [str(tools.find("consul")), "agent", f"-config-file={folder / 'consul.json'}"]
    url, ca_file = f"{scheme}://127.0.0.1:{ports[scheme]}", certificates and certificates / "vault-ca.pem"
    yield from _running(Server(command, url, "/v1/status/leader", "X-Consul-Token", folder / "consul.log", ca_file))


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
