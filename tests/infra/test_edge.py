"""The edge: one open port, an identity that finds the gateway and nothing else, and pages for a browser."""

from __future__ import annotations

import pytest
from support.infrastructure.deployed_stack import DeployedStack


def test_the_identity_of_the_edge_finds_the_gateway_and_nothing_else(deployed: DeployedStack) -> None:
    services, orders, settings = deployed.consul_as(
        "edge", "/v1/catalog/services", "/v1/health/service/order-service", "/v1/kv/config/gateway", task="sidecar"
    )
    assert set(services.json()) == {"gateway"}
    assert orders.json() == []
    assert settings.status == 403


@pytest.mark.parametrize("path", ["/api/rawdata", "/dashboard/", "/metrics", "/ping"])
def test_traefik_publishes_nothing_of_its_own(deployed: DeployedStack, path: str) -> None:
    reply = deployed.anonymous("gateway", path)
    assert reply.status == 404
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
def test_traefik_itself_answers_a_request_that_is_not_http(
    deployed: DeployedStack, request_line: str, header: str, status: int
) -> None:
    sent = f"{request_line}\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n".encode()
    answer = deployed.exchange("tcp", deployed.stack.port("gateway"), sent).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "traceresponse" not in answer.lower()


@pytest.mark.parametrize(
    ("part", "path"),
    [("nomad", "/ui/"), ("consul", "/ui/"), ("vault", "/ui/"), ("telemetry", "/"), ("gateway", "/docs")],
)
def test_a_browser_gets_a_page(deployed: DeployedStack, part: str, path: str) -> None:
    if part == "telemetry" and not deployed.allocations(part):
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    reply = deployed.anonymous(part, path)
    assert reply.status == 200
    assert "<html" in reply.text.lower()


def test_no_response_offers_another_http_version(deployed: DeployedStack) -> None:
    assert "alt-svc" not in deployed.anonymous("gateway", "/livez").headers


def test_the_gateway_is_ready_behind_the_edge(deployed: DeployedStack) -> None:
    assert deployed.anonymous("gateway", "/readyz").json()["status"] == "ready"
