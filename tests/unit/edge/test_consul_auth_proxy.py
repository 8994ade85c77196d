"""The proxy to Consul, with a stub of Consul: every request has a token."""

from __future__ import annotations

import http.client
import json
import runpy
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stack.config import ROOT

PROGRAM = runpy.run_path(str(ROOT / "nomad" / "sidecars" / "edge" / "consul_auth_proxy.py"))
Get = Callable[[str], tuple[int, bytes]]


class Consul(ThreadingHTTPServer):
    """Accepts one token at a time, and records the path and the token of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _StubHandler)
        self.number, self.closed = 1, False
        self.requests: list[tuple[str, str]] = []

    @property
    def token(self) -> str:
        return f"token-{self.number}"


class _StubHandler(BaseHTTPRequestHandler):
    server: Consul

    def do_GET(self) -> None:
        token = self.headers["X-Consul-Token"] or ""
        self.server.requests.append((self.path, token))
        self._respond(200 if token == self.server.token else 403, b"[]")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        valid = request == {"AuthMethod": "nomad-workloads", "BearerToken": "identity"}
        accepted = valid and not self.server.closed
        self._respond(200 if accepted else 403, json.dumps({"SecretID": self.server.token}).encode())

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("X-Consul-Index", "7")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def consul() -> Iterator[Consul]:
    server = Consul()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consul.sock"


@pytest.fixture
def get(consul: Consul, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Get]:
    """Sends a GET request through the proxy; returns status and body."""
    identity = tmp_path / "nomad_consul.jwt"
    identity.write_text("identity\n")
    monkeypatch.setitem(PROGRAM["Handler"]._forward.__globals__, "_LONGEST_SECONDS", 1.0)
    address = f"127.0.0.1:{consul.server_port}"
    proxy = PROGRAM["Server"](str(path), address, PROGRAM["Login"](address, identity))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()

    def send(target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("consul", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", target)
        response = connection.getresponse()
        assert response.status != 200 or response.headers["X-Consul-Index"] == "7"
        return response.status, response.read()

    yield send
    proxy.shutdown()
    proxy.server_close()


def test_a_request_is_forwarded_with_the_token_of_the_identity(consul: Consul, get: Get) -> None:
    assert get("/v1/catalog/services?index=7&wait=1s") == (200, b"[]")
    assert consul.requests == [("/v1/catalog/services?index=7&wait=1s", "token-1")]


def test_a_token_is_used_until_consul_rejects_it_and_is_then_renewed(consul: Consul, get: Get) -> None:
    for number in (1, 1, 2):
        consul.number = number
        assert get("/v1/health/state/any")[0] == 200
    assert [token for _, token in consul.requests] == ["token-1", "token-1", "token-1", "token-2"]


def test_no_request_is_forwarded_without_a_token(consul: Consul, get: Get) -> None:
    consul.closed = True
    status, body = get("/v1/catalog/services")
    assert (status, consul.requests) == (502, [])
    assert b"login refused" in body


def test_a_request_waits_while_consul_is_unavailable(consul: Consul, get: Get) -> None:
    consul.closed = True
    opening = threading.Timer(0.4, lambda: setattr(consul, "closed", False))
    opening.start()
    assert get("/v1/catalog/services")[0] == 200


def test_the_proxy_forwards_only_reads() -> None:
    assert [name for name in vars(PROGRAM["Handler"]) if name.startswith("do_")] == ["do_GET"]
