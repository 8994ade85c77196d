"""What somebody changed by hand in Consul and Vault is shown by `plan`, and a deploy takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from operator_commands import run
from stack_under_test import RunningStack

BUILT_IN_POLICY = "global-management"


@pytest.fixture(autouse=True)
def restored(running: RunningStack) -> Iterator[None]:
    assert run("plan").returncode == 0
    yield
    assert run("deploy").returncode == 0


@pytest.fixture
def acl(running: RunningStack) -> Any:
    return running.clients.consul.acl


def _taken_back(*lines: str) -> None:
    """A plan names each of these, a deploy does what it said, and nothing is left to do."""
    plan = run("plan")
    assert plan.returncode == 2, plan.stdout + plan.stderr
    for line in lines:
        assert line in plan.stdout.splitlines()
    assert f"{len(lines)} changes" in plan.stdout
    deploy = run("deploy")
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    assert f"\n{len(lines)} changes" in deploy.stdout
    assert run("plan").returncode == 0


def test_a_role_of_consul_that_was_widened(acl: Any) -> None:
    role = acl.roles.get_by_name("gateway")
    wider = {"Policies": [{"Name": "gateway"}, {"Name": BUILT_IN_POLICY}], "ServiceIdentities": [{"ServiceName": "x"}]}
    acl.roles.update({"Name": "gateway"} | wider, role["ID"])
    _taken_back("~ consul role gateway")
    narrow = acl.roles.get_by_name("gateway")
    assert [policy["Name"] for policy in narrow["Policies"]] == ["gateway"]
    assert not narrow.get("ServiceIdentities")


def test_a_token_of_an_agent_that_was_widened(running: RunningStack, acl: Any) -> None:
    secret = running.clients.credentials.token("consul-nomad-agent")
    token = acl.tokens.self(token=secret)
    acl.tokens.update({"SecretID": secret, "Policies": [{"Name": BUILT_IN_POLICY}]}, token["AccessorID"])
    _taken_back("~ consul token consul-nomad-agent")
    assert [policy["Name"] for policy in acl.tokens.self(token=secret)["Policies"]] == ["nomad-agent"]


def test_what_no_file_of_consul_names(acl: Any) -> None:
    policy = acl.policy.create("by-hand", rules='key_prefix "" { policy = "write" }')
    acl.roles.create({"Name": "by-hand", "Policies": [{"ID": policy["ID"]}]})
    rule = {"AuthMethod": "nomad-workloads", "BindType": "role", "BindName": "by-hand", "Description": "by hand"}
    acl.binding_rule.create(rule)
    _taken_back("- consul role by-hand", "- consul policy by-hand", "- consul binding rule 'by hand'")
    assert {"global-management", "builtin/global-read-only"} < {entry["Name"] for entry in acl.policy.list()}


def test_a_role_of_vault_that_takes_more_claims(running: RunningStack) -> None:
    vault, path = running.clients.vault, "auth/jwt-nomad/role/user-service"
    role = vault.read(path)["data"]
    vault.write_data(path, data=role | {"bound_claims": {"nomad_namespace": "default"}})
    _taken_back(f"~ vault {path}")
    assert vault.read(path)["data"]["bound_claims"] == role["bound_claims"]


def test_a_mount_and_a_connection_of_vault(running: RunningStack) -> None:
    vault, url = running.clients.vault, "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres"
    connection = vault.read("database/config/postgres")["data"]
    vault.write_data("sys/mounts/database/tune", data={"max_lease_ttl": "9000h"})
    changed = {"connection_url": url, "verify_connection": False, "plugin_name": connection["plugin_name"]}
    vault.write_data("database/config/postgres", data=changed | {"allowed_roles": connection["allowed_roles"]})
    _taken_back("~ vault mounts database", "~ vault database/config/postgres")
    assert vault.read("sys/mounts")["data"]["database/"]["config"]["max_lease_ttl"] == 0


def test_what_no_file_of_vault_names(running: RunningStack) -> None:
    vault = running.clients.vault
    vault.write_data("sys/policies/acl/by-hand", data={"policy": 'path "*" { capabilities = ["read"] }'})
    role = vault.read("auth/jwt-nomad/role/gateway")["data"]
    vault.write_data("auth/jwt-nomad/role/by-hand", data=role | {"token_policies": ["by-hand"]})
    login = vault.read("database/roles/user-service")["data"]
    vault.write_data("database/roles/by-hand", data=login)
    paths = ("sys/policies/acl", "auth/jwt-nomad/role", "database/roles")
    _taken_back(*(f"- vault {path}/by-hand" for path in paths))
    assert {"default", "root", "operator"} < set(vault.list("sys/policies/acl")["data"]["keys"])
