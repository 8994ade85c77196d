"""The edge: one open port, an identity that sees the gateway and nothing else, and no secret with Traefik."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.stack_under_test import RunningStack, environment

from stack.machine import processes


@pytest.fixture
def folder(running: RunningStack) -> Path:
    """What Nomad keeps of the running edge."""
    return running.folder(running.allocations("edge")[0], "edge").parent


@pytest.fixture
def token(running: RunningStack, folder: Path) -> Iterator[str]:
    """A Consul token such as the door has."""
    identity = (folder / "sidecar" / "secrets" / "nomad_consul.jwt").read_text()
    ask = {"AuthMethod": "nomad-workloads", "BearerToken": identity}
    found: str = httpx.post(running.url("consul") + "/v1/acl/login", json=ask).raise_for_status().json()["SecretID"]
    yield found
    httpx.post(running.url("consul") + "/v1/acl/logout", headers={"X-Consul-Token": found}).raise_for_status()


def _get(running: RunningStack, token: str, path: str) -> httpx.Response:
    return httpx.get(running.url("consul") + path, headers={"X-Consul-Token": token})


def test_the_identity_of_the_edge_sees_the_gateway_and_nothing_else(running: RunningStack, token: str) -> None:
    assert set(_get(running, token, "/v1/catalog/services").json()) == {"gateway"}
    assert _get(running, token, "/v1/health/service/order-service").json() == []
    assert _get(running, token, "/v1/kv/config/gateway").status_code == httpx.codes.FORBIDDEN


def test_only_its_owner_may_open_the_door_to_consul(folder: Path) -> None:
    socket = folder / "alloc" / "tmp" / "consul.sock"
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


def test_traefik_is_given_no_token(running: RunningStack, folder: Path) -> None:
    written = [file.read_text() for file in (folder / "edge" / "local").iterdir()]
    started = [text for pid in processes.below(folder / "edge") if (text := environment(pid))]
    assert written
    assert started
    assert [text for text in written + started if "token" in text.lower() or "eyJ" in text] == []


@pytest.mark.parametrize("path", ["/api/rawdata", "/dashboard/", "/metrics", "/ping"])
def test_traefik_shows_nothing_of_itself(running: RunningStack, path: str) -> None:
    reply = httpx.get(running.url("gateway") + path)
    assert reply.status_code == httpx.codes.NOT_FOUND
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("request_line", "header", "status"),
    [
        ("GET /a%zz HTTP/1.1", "X: y", 400),
        ("GET /a HTTP/1.1", "Bad Name: y", 400),
        ("GET /a HTTP/1.1", "X: " + "y" * 40_000, 431),
        ("GET /a HTTP/1.1", "Expect: a miracle", 417),
        ("CONNECT a:1 HTTP/1.1", "X: y", 501),
        ("GET /a HTTP/3.0", "X: y", 505),
    ],
)
def test_what_is_no_http_is_refused_by_traefik_in_its_own_words(
    running: RunningStack, request_line: str, header: str, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", running.stack.port("gateway")), timeout=5) as connection:
        connection.sendall(f"{request_line}\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "traceresponse" not in answer.lower()
