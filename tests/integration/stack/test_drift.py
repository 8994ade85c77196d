"""`plan` shows changes made by hand in Consul and Vault, and a deploy reverts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from support.operator_commands import run
from support.stack_under_test import RunningStack

BUILT_IN_POLICY = "global-management"
BY_HAND: list[Callable[[RunningStack], AbstractContextManager[list[str]]]] = []


def _by_hand(change: Callable[[RunningStack], Iterator[list[str]]]) -> None:
    """Adds a change: it yields its lines in the plan, and checks afterwards that it was reverted."""
    BY_HAND.append(contextmanager(change))


@pytest.fixture
def restored(running: RunningStack) -> Iterator[None]:
    assert run("plan").returncode == 0
    yield
    assert run("deploy").returncode == 0


def test_changes_made_by_hand_are_shown_and_reverted(running: RunningStack, restored: None) -> None:
    with ExitStack() as changed:
        lines = [line for change in BY_HAND for line in changed.enter_context(change(running))]
        plan = run("plan")
        assert plan.returncode == 2, plan.stdout + plan.stderr
        assert set(lines) <= set(plan.stdout.splitlines()), plan.stdout
        assert f"{len(lines)} changes" in plan.stdout
        deploy = run("deploy")
        assert deploy.returncode == 0, deploy.stdout + deploy.stderr
        assert f"\n{len(lines)} changes" in deploy.stdout
        assert run("plan").returncode == 0


def _acl(running: RunningStack) -> Any:
    return running.clients.consul.acl


@_by_hand
def a_role_of_consul_is_widened(running: RunningStack) -> Iterator[list[str]]:
    roles = _acl(running).roles
    wider = {"Policies": [{"Name": "gateway"}, {"Name": BUILT_IN_POLICY}], "ServiceIdentities": [{"ServiceName": "x"}]}
    roles.update({"Name": "gateway"} | wider, roles.get_by_name("gateway")["ID"])
    yield ["~ consul role gateway"]
    narrow = roles.get_by_name("gateway")
    assert [policy["Name"] for policy in narrow["Policies"]] == ["gateway"]
    assert not narrow.get("ServiceIdentities")


@_by_hand
def a_token_of_an_agent_is_widened(running: RunningStack) -> Iterator[list[str]]:
    tokens, secret = _acl(running).tokens, running.clients.credentials.token("consul-nomad-agent")
    accessor = tokens.self(token=secret)["AccessorID"]
    tokens.update({"SecretID": secret, "Policies": [{"Name": BUILT_IN_POLICY}]}, accessor)
    yield ["~ consul token consul-nomad-agent"]
    assert [policy["Name"] for policy in tokens.self(token=secret)["Policies"]] == ["nomad-agent"]


@_by_hand
def consul_has_what_no_file_names(running: RunningStack) -> Iterator[list[str]]:
    acl = _acl(running)
    policy = acl.policy.create("by-hand", rules='key_prefix "" { policy = "write" }')
    acl.roles.create({"Name": "by-hand", "Policies": [{"ID": policy["ID"]}]})
    rule = {"AuthMethod": "nomad-workloads", "BindType": "role", "BindName": "by-hand", "Description": "by hand"}
    acl.binding_rule.create(rule)
    yield ["- consul role by-hand", "- consul policy by-hand", "- consul binding rule 'by hand'"]
    assert {"global-management", "builtin/global-read-only"} < {entry["Name"] for entry in acl.policy.list()}


@_by_hand
def a_role_of_vault_takes_more_claims(running: RunningStack) -> Iterator[list[str]]:
    vault, path = running.clients.vault, "auth/jwt-nomad/role/user-service"
    role = vault.read(path)["data"]
    vault.write_data(path, data=role | {"bound_claims": {"nomad_namespace": "default"}})
    yield [f"~ vault {path}"]
    assert vault.read(path)["data"]["bound_claims"] == role["bound_claims"]


@_by_hand
def a_mount_and_a_connection_of_vault_are_others(running: RunningStack) -> Iterator[list[str]]:
    vault, url = running.clients.vault, "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres"
    connection = vault.read("database/config/postgres")["data"]
    vault.write_data("sys/mounts/database/tune", data={"max_lease_ttl": "9000h"})
    changed = {"connection_url": url, "verify_connection": False, "plugin_name": connection["plugin_name"]}
    vault.write_data("database/config/postgres", data=changed | {"allowed_roles": connection["allowed_roles"]})
    yield ["~ vault mounts database", "~ vault database/config/postgres"]
    assert vault.read("sys/mounts")["data"]["database/"]["config"]["max_lease_ttl"] == 0


@_by_hand
def vault_has_what_no_file_names(running: RunningStack) -> Iterator[list[str]]:
    vault = running.clients.vault
    vault.write_data("sys/policies/acl/by-hand", data={"policy": 'path "*" { capabilities = ["read"] }'})
    role = vault.read("auth/jwt-nomad/role/gateway")["data"]
    vault.write_data("auth/jwt-nomad/role/by-hand", data=role | {"token_policies": ["by-hand"]})
    login = vault.read("database/roles/user-service")["data"]
    vault.write_data("database/roles/by-hand", data=login)
    yield [f"- vault {path}/by-hand" for path in ("sys/policies/acl", "auth/jwt-nomad/role", "database/roles")]
    assert {"default", "root", "operator"} < set(vault.list("sys/policies/acl")["data"]["keys"])


@_by_hand
def the_mesh_is_wider(running: RunningStack) -> Iterator[list[str]]:
    entries, vault, path = running.clients.consul.config, running.clients.vault, "mesh/roles/gateway"
    role, entry = vault.read(path)["data"], entries.get("service-intentions", "order-service")
    vault.write_data(path, data=role | {"allowed_uri_sans": ["spiffe://*"]})
    vault.write_data("mesh/roles/by-hand", data=role)
    anybody = {"Name": "*", "Action": "allow"}
    entries.put({"Kind": "service-intentions", "Name": "order-service", "Sources": [anybody]})
    entries.put({"Kind": "service-intentions", "Name": "by-hand", "Sources": [anybody]})
    intentions = ["~ consul service-intentions order-service", "- consul service-intentions by-hand"]
    yield [f"~ vault {path}", "- vault mesh/roles/by-hand", *intentions]
    assert vault.read(path)["data"]["allowed_uri_sans"] == role["allowed_uri_sans"]
    assert entries.get("service-intentions", "order-service")["Sources"] == entry["Sources"]
    assert "leaf-cert" in vault.list("mesh/roles")["data"]["keys"]


@_by_hand
def consul_cannot_log_in_to_vault(running: RunningStack) -> Iterator[list[str]]:
    certificates, approle = running.clients.consul.connect.certificates, running.clients.vault.auth.approle
    config = certificates.current()["Config"]
    for accessor in approle.list_secret_id_accessors("consul-ca")["data"]["keys"]:
        approle.destroy_secret_id_accessor("consul-ca", accessor)
    yield ["~ vault login of consul-ca"]
    assert len(approle.list_secret_id_accessors("consul-ca")["data"]["keys"]) == 1
    assert certificates.current()["Config"] == config
