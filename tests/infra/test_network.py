"""Sockets, names and kernel parameters: every documented address listens, and none can be reached from outside."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack

from stack.config import current

TELEMETRY = {"telemetry", "otlp_grpc", "otlp_http"}
HTTPS = "gateway_https"
PROCESS = re.compile(r"pid=(\d+)")
NAME_ERROR = 3  # the response code of DNS for "there is no such name"


@pytest.fixture(scope="module")
def listening(host: Any) -> set[str]:
    """Every listening socket of the machine, as testinfra names it."""
    return set(host.socket.get_listening_sockets())


@pytest.mark.parametrize("part", current().ports())
def test_a_documented_port_listens_on_loopback(deployed: DeployedStack, listening: set[str], part: str) -> None:
    if part in TELEMETRY and not deployed.allocations("telemetry"):
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    if part == HTTPS and not in_mesh(deployed):
        pytest.skip("not in the mesh (nomad/jobs/*.vars.hcl): edge")
    assert f"tcp://127.0.0.1:{deployed.stack.port(part)}" in listening


def test_no_port_of_the_stack_listens_beyond_loopback(deployed: DeployedStack, listening: set[str]) -> None:
    first, last = deployed.stack.dynamic_ports
    ports = {*deployed.stack.ports().values(), *range(first, last + 1)}
    sockets = [spec.partition("://")[2].rpartition(":") for spec in listening if not spec.startswith("unix")]
    own = [(address, int(port)) for address, _, port in sockets if int(port) in ports]
    assert len(own) >= len(deployed.stack.ports()) - len({*TELEMETRY, HTTPS})
    assert [(address, port) for address, port in own if not is_loopback(address)] == []


def test_no_process_of_the_stack_listens_beyond_loopback(deployed: DeployedStack) -> None:
    pids = {process.pid for process in deployed.processes()}
    lines = [line for line in deployed.run("ss -Hltunp").splitlines() if {*map(int, PROCESS.findall(line))} & pids]
    assert lines
    assert [line for line in lines if not is_loopback(line.split()[4].rpartition(":")[0])] == []


def in_mesh(deployed: DeployedStack) -> bool:
    (group,) = deployed.nomad("/v1/job/edge")["TaskGroups"]
    return bool(group["Tasks"][0]["Meta"]["mesh"] == "on")


def is_loopback(address: str) -> bool:
    """True for 127.0.0.0/8 and ::1, also where an IPv6 socket holds the IPv4 address."""
    text = address.strip("[]").partition("%")[0]
    if text == "*":
        return False
    parsed = ipaddress.ip_address(text)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def test_no_port_of_the_stack_is_one_that_the_kernel_gives_to_clients(deployed: DeployedStack, host: Any) -> None:
    first, last = map(int, host.sysctl("net.ipv4.ip_local_port_range").split())
    ports = {*deployed.stack.ports().values(), *deployed.stack.dynamic_ports}
    assert [port for port in ports if first <= port <= last] == []


def test_the_kernel_queues_as_many_connections_as_the_edge_may_get_at_once(host: Any) -> None:
    assert host.sysctl("net.core.somaxconn") >= 128


@pytest.mark.parametrize("service", ["gateway", "order-service", "postgres"])
def test_the_dns_of_consul_names_no_service_to_an_anonymous_caller(deployed: DeployedStack, service: str) -> None:
    labels = [*f"{service}.service.consul".split("."), ""]
    question = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\x00\x01\x00\x01"
    asked = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question
    answer = deployed.exchange("udp", deployed.stack.port("consul_dns"), asked)
    assert answer[:2] == asked[:2]
    assert answer[3] & 0x0F == NAME_ERROR
    assert int.from_bytes(answer[6:8], "big") == 0  # no answer records
