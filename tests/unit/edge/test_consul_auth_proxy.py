"""The door to Consul, before a Consul of the test's own: with a token always, without one never."""

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
    """Knows one token at a time and remembers what it was asked, and with which token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.number, self.closed = 1, False
        self.asked: list[tuple[str, str]] = []

    @property
    def token(self) -> str:
        return f"token-{self.number}"


class _Answers(BaseHTTPRequestHandler):
    server: Consul

    def do_GET(self) -> None:
        token = self.headers["X-Consul-Token"] or ""
        self.server.asked.append((self.path, token))
        self._answer(200 if token == self.server.token else 403, b"[]")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        welcome = asked == {"AuthMethod": "nomad-workloads", "BearerToken": "identity"} and not self.server.closed
        self._answer(200 if welcome else 403, json.dumps({"SecretID": self.server.token}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("X-Consul-Index", "7")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests are read, not listened to."""


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
    """Asks through the door."""
    identity = tmp_path / "nomad_consul.jwt"
    identity.write_text("identity\n")
    monkeypatch.setitem(PROGRAM["Visitor"]._ask.__globals__, "_LONGEST_SECONDS", 1.0)
    address = f"127.0.0.1:{consul.server_port}"
    door = PROGRAM["Door"](str(path), address, PROGRAM["Login"](address, identity))
    threading.Thread(target=door.serve_forever, daemon=True).start()

    def ask(what: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("consul", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", what)
        answer = connection.getresponse()
        assert answer.status != 200 or answer.headers["X-Consul-Index"] == "7"
        return answer.status, answer.read()

    yield ask
    door.shutdown()
    door.server_close()


def test_what_is_asked_is_asked_with_the_token_of_the_identity(consul: Consul, get: Get) -> None:
    assert get("/v1/catalog/services?index=7&wait=1s") == (200, b"[]")
    assert consul.asked == [("/v1/catalog/services?index=7&wait=1s", "token-1")]


def test_a_token_is_used_until_consul_refuses_it_and_then_had_anew(consul: Consul, get: Get) -> None:
    for number in (1, 1, 2):
        consul.number = number
        assert get("/v1/health/state/any")[0] == 200
    assert [token for _, token in consul.asked] == ["token-1", "token-1", "token-1", "token-2"]


def test_without_a_token_nothing_is_asked(consul: Consul, get: Get) -> None:
    consul.closed = True
    status, said = get("/v1/catalog/services")
    assert (status, consul.asked) == (502, [])
    assert b"login refused" in said


def test_a_consul_that_is_away_is_waited_for(consul: Consul, get: Get) -> None:
    consul.closed = True
    opening = threading.Timer(0.4, lambda: setattr(consul, "closed", False))
    opening.start()
    assert get("/v1/catalog/services")[0] == 200


def test_nothing_can_be_changed_through_the_door() -> None:
    assert [name for name in vars(PROGRAM["Visitor"]) if name.startswith("do_")] == ["do_GET"]
