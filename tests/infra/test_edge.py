"""The edge: one open port, an identity that finds the gateway and nothing else, and pages for a browser."""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack, Request
from support.stack_under_test import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_token_of_the_edge_finds_the_gateway_and_nothing_else(deployed: DeployedStack) -> None:
    token = f"<file {deployed.task_folder('edge')}/secrets/consul_token>"
    paths = ("/v1/catalog/services", "/v1/health/service/order-service", "/v1/kv/config/gateway")
    asked = [Request(deployed.url("consul") + path, headers={"X-Consul-Token": token}) for path in paths]
    services, orders, settings = deployed.ask(*asked)
    assert set(services.json()) == {"gateway"}
    assert orders.json() == []
    assert settings.status == 403


def test_the_instances_of_envoy_are_those_that_pass_in_consul(deployed: DeployedStack) -> None:
    file = f"{deployed.task_folder('edge')}/local/instances/gateway.json"

    def same() -> bool:
        (resource,) = json.loads(deployed.host.file(file).content_string)["resources"]
        (locality,) = resource["endpoints"]
        written = [end["endpoint"]["address"]["socket_address"]["port_value"] for end in locality["lb_endpoints"]]
        passing = deployed.consul("/v1/health/service/gateway?passing")
        return bool(written) and sorted(written) == sorted(entry["Service"]["Port"] for entry in passing)

    eventually("Nomad has rendered what Consul has", same)


@pytest.mark.parametrize(
    "path", ["/stats", "/clusters", "/config_dump", "/quitquitquit", "/metrics", "/ping", "/ready"]
)
def test_envoy_publishes_nothing_of_its_own(deployed: DeployedStack, path: str) -> None:
    for method in ("GET", "POST"):
        reply = deployed.anonymous("gateway", path, method)
        assert reply.status == 404
        assert reply.headers["content-type"] == "application/problem+json"


def exchange(deployed: DeployedStack, request: str) -> tuple[int, Any]:
    """Sends the text of a request; status and problem of the answer."""
    answer = deployed.exchange("tcp", deployed.stack.port("gateway"), request.encode()).decode()
    head, _, body = answer.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert headers["content-type"] == "application/problem+json"
    return int(status.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("request_line", "header", "status", "kind"),
    [
        ("GET /a HTTP/1.1", "Bad Name: y", 400, "malformed"),
        ("GET /a HTTP/1.1", "X: " + "y" * 40_000, 431, "headers-too-large"),
        ("GET /a HTTP/1.1", "\r\n".join(f"X{number}: y" for number in range(120)), 431, "headers-too-large"),
        ("POST /a HTTP/1.1", "Content-Length: 1\r\nTransfer-Encoding: chunked", 400, "malformed"),
        ("CONNECT a:1 HTTP/1.1", "X: y", 400, "malformed"),
        ("OPTIONS * HTTP/1.1", "X: y", 400, "malformed"),
    ],
)
def test_envoy_itself_answers_a_request_that_is_not_http_with_a_problem(
    deployed: DeployedStack, request_line: str, header: str, status: int, kind: str
) -> None:
    found, problem = exchange(deployed, f"{request_line}\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n")
    assert (found, problem["status"], problem["type"]) == (status, status, f"/problems/{kind}")
    # A head that was not read has no trace.
    assert re.fullmatch("[0-9a-f]{32}", problem.get("trace_id", TRACE))


@pytest.mark.parametrize(
    ("traceparent", "is_continued"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"00-{TRACE}-00f067aa0ba902b7-00", True),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"00-{TRACE}0-0f067aa0ba902b7-01", False),
        (f"00-{TRACE[1:]}-000f067aa0ba902b7-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"0-{TRACE}0-00f067aa0ba902b7-01", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_an_answer_of_envoy_is_in_the_trace_of_a_valid_traceparent_or_in_a_new_one(
    deployed: DeployedStack, traceparent: str, is_continued: bool
) -> None:
    sent = Request(deployed.url("gateway") + "/v1/users?a=b", "POST", {"traceparent": traceparent}, "x" * 70_000)
    (reply,) = deployed.ask(sent)
    problem = json.loads(reply.text)
    assert (reply.status, problem["type"], problem["instance"]) == (413, "/problems/body-too-large", "/v1/users")
    version, trace, span, flags = reply.headers["traceresponse"].split("-")
    assert (version, flags, len(trace), len(span)) == ("00", "00", 32, 16)
    assert problem["trace_id"] == trace
    assert set(trace + span) <= set(string.hexdigits.lower())
    assert (trace == TRACE) == is_continued


def test_an_offered_upgrade_and_forged_origins_are_ignored(deployed: DeployedStack) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Envoy-Upstream-Rq-Timeout-Ms": "1", "Upgrade": "h2c"}
    (reply,) = deployed.ask(Request(deployed.url("gateway") + "/livez", headers=forged))
    assert reply.status == 200
    assert [name for name in reply.headers if name.startswith("x-envoy")] == []


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


def test_the_edge_logs_each_request_with_its_reason_and_without_secrets(deployed: DeployedStack) -> None:
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-00", "authorization": "Bearer not-to-be-logged"}
    url = deployed.url("gateway")
    read = Request(f"{url}/v1/users/me?not=to-be-logged", headers=headers)
    deployed.ask(
        read, Request(f"{url}/v1/users", "POST", headers, "x" * 70_000), Request(f"{url}/readyz", headers=headers)
    )
    (alloc,) = deployed.allocations("edge")

    def lines() -> list[dict[str, Any]] | None:
        found = [line for line in deployed.log(alloc["ID"], "edge", "stdout").splitlines() if trace in line]
        return [json.loads(line) for line in found] if len(found) == 2 else None

    passed, own = sorted(eventually("both requests are logged", lines, 15), key=lambda line: line["status"])
    assert (passed["path"], passed["status"], passed["details"]) == ("/v1/users/me", 401, "via_upstream")
    assert (passed["event"], passed["service"], passed["method"], passed["attempts"]) == ("request", "edge", "GET", 1)
    assert (own["path"], own["status"], own["details"]) == ("/v1/users", 413, "request_payload_too_large")
    assert "to-be-logged" not in json.dumps([passed, own])
