"""Allocations whose Consul token is gone: found for services and for templates, and never for tokens that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from consul import ACLPermissionDenied

from stack import config
from stack.cluster.job_health.forgotten_tokens import allocation_of, forgotten
from stack.config import Stack

ONE, TWO = "842c1cc8-4fa3-c700-79a1-cea91f95fb86", "eb463e3c-5aaf-1c3b-6b7a-0f6c5d3b2a10"


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(config, "ROOT", tmp_path)
    return Stack("any", 0)


def consul(*known: str) -> Any:
    def itself(token: str) -> dict[str, str]:
        if token not in known:
            raise ACLPermissionDenied("token does not exist: ACL not found")
        return {"SecretID": token}

    return SimpleNamespace(acl=SimpleNamespace(tokens=SimpleNamespace(self=itself)))


def registered(stack: Stack, allocation: str, service: str, token: str) -> None:
    folder = stack.state / "consul" / "data" / "services"
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"ID": f"_nomad-task-{allocation}-group-api-{service}-grpc", "Service": service}
    (folder / service).write_text(json.dumps({"Token": token, "Service": entry}))


def templated(stack: Stack, allocation: str, task: str, token: str) -> None:
    folder = stack.state / "nomad" / "data" / "alloc" / allocation / task / "secrets"
    folder.mkdir(parents=True)
    (folder / "consul_token").write_text(token)


def test_an_unknown_token_of_a_service_is_found(stack: Stack) -> None:
    registered(stack, ONE, "user-service", "gone")
    registered(stack, TWO, "gateway", "known")
    found = forgotten(stack, consul("known"), {ONE, TWO})
    assert found == {ONE: "Consul does not know its token, so it cannot register service user-service"}


def test_an_unknown_token_of_templates_is_found(stack: Stack) -> None:
    registered(stack, ONE, "edge", "known")
    templated(stack, ONE, "edge", "gone")
    effect = "Consul does not know its token, so the templates of task edge cannot read Consul"
    assert forgotten(stack, consul("known"), {ONE}) == {ONE: effect}
    assert forgotten(stack, consul("known", "gone"), {ONE}) == {}


def test_an_allocation_that_does_not_run_is_not_replaced(stack: Stack) -> None:
    registered(stack, ONE, "user-service", "gone")
    assert forgotten(stack, consul(), {TWO}) == {}


def test_a_file_that_the_agent_is_writing_is_skipped(stack: Stack) -> None:
    registered(stack, ONE, "user-service", "gone")
    (stack.state / "consul" / "data" / "services" / "half.tmp").write_text('{"Token": "x", "Serv')
    assert set(forgotten(stack, consul(), {ONE})) == {ONE}


def test_the_folder_for_the_proxies_of_services_is_skipped(stack: Stack) -> None:
    registered(stack, ONE, "user-service", "gone")
    (stack.state / "consul" / "data" / "services" / "configs").mkdir()
    assert set(forgotten(stack, consul(), {ONE})) == {ONE}


@pytest.mark.parametrize("service", ["_nomad-server-tl5dgauqxnxsq7pgcvloyq7d6gf75mj7", "", "by-hand"])
def test_a_service_of_an_agent_belongs_to_no_allocation(service: str) -> None:
    assert allocation_of(service) == ""
