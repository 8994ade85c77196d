"""Before a job starts or changes, each fixed port that it needs is free or its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    """Those of the edge, on which some process listens."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        yield {"gateway": one.getsockname()[1], "gateway_https": other.getsockname()[1]}


def server(ports: dict[str, int], *held: str, status: str = "running") -> nomad.Nomad:
    """With an allocation of the edge that holds some of the ports."""
    allocation = {"ID": "1", "DesiredStatus": "run", "ClientStatus": status}
    listed = [{"Label": name, "Value": ports[name]} for name in held]
    api = SimpleNamespace(
        job=SimpleNamespace(get_allocations=lambda _: [allocation]),
        allocation=SimpleNamespace(get_allocation=lambda _: {"AllocatedResources": {"Shared": {"Ports": listed}}}),
    )
    stack = cast(Stack, SimpleNamespace(port=ports.__getitem__))
    return nomad.Nomad(stack, cast(Clients, SimpleNamespace(nomad=api)), cast(Any, None), {})


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nomad, "is_in_mesh", lambda _: True)


@pytest.mark.usefixtures("mesh")
def test_a_port_that_a_running_job_needs_from_its_next_version_on_must_be_free(ports: dict[str, int]) -> None:
    with pytest.raises(StackError, match=r"\(gateway_https\) is taken"):
        server(ports, "gateway").require_ports("edge")


@pytest.mark.usefixtures("mesh")
def test_the_ports_that_a_running_job_holds_are_its_own(ports: dict[str, int]) -> None:
    server(ports, "gateway", "gateway_https").require_ports("edge")


def test_a_port_of_an_ended_allocation_must_be_free(ports: dict[str, int]) -> None:
    with pytest.raises(StackError, match=r"\(gateway\) is taken"):
        server(ports, "gateway", status="complete").require_ports("edge")


@pytest.mark.parametrize(
    ("line", "found"),
    [("mesh = true", True), ("mesh=true # all", True), ("mesh = false", False), ("# mesh = true", False)],
)
def test_a_comment_behind_the_switch_of_the_mesh_changes_nothing(
    line: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gateway.vars.hcl").write_text(f'name = "gateway"\n{line}\n')
    monkeypatch.setattr(nomad, "JOBS", tmp_path)
    assert nomad.is_in_mesh("gateway") is found
