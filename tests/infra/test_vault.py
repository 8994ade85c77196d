"""Vault (OpenBao): unsealed, audited, and narrow: each workload reads its own secrets, and no login lives long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack
from support.stack_under_test import eventually

BUILT_IN = {"default", "root", "operator"}
LONGEST_SECONDS = 8 * 3600  # the login of the operator
FORBIDDEN = [
    ("order-service", "GET", "secret/data/user-service"),
    ("gateway", "GET", "secret/data/user-service"),
    ("user-service", "GET", "database/creds/user-service-owner"),
    ("order-service", "GET", "database/creds/order-service-owner"),
    ("order-service", "GET", "database/creds/user-service-owner"),
    ("user-service", "GET", "database/creds/order-service"),
    ("order-service", "GET", "database/creds/user-service"),
    ("gateway", "GET", "database/creds/user-service"),
    ("gateway", "POST", "transit/sign/tokens"),
    ("order-service", "POST", "transit/sign/tokens"),
    ("gateway", "POST", "mesh/sign/user-service"),
    ("user-service", "POST", "mesh/sign/order-service"),
    ("order-service", "POST", "mesh/sign/operator"),
    ("order-service", "POST", "mesh/sign/leaf-cert"),
    ("gateway", "POST", "mesh/issue/gateway"),
    ("gateway", "POST", "mesh-root/root/sign-intermediate"),
    ("gateway", "LIST", "secret/metadata"),
]


def test_vault_is_unsealed_and_active(deployed: DeployedStack) -> None:
    health = deployed.anonymous("vault", "/v1/sys/health").json()
    assert (health["initialized"], health["sealed"], health["standby"]) == (True, False, False)


@pytest.mark.parametrize(
    "path", ["secret/data/user-service", "database/creds/user-service", "sys/mounts", "sys/policies/acl?list=true"]
)
def test_vault_refuses_an_anonymous_caller(deployed: DeployedStack, path: str) -> None:
    assert deployed.anonymous("vault", f"/v1/{path}").status == 403


def test_every_request_is_audited(deployed: DeployedStack) -> None:
    (devices,) = deployed.vault("sys/audit")
    assert {name: device["type"] for name, device in devices.items()} == {"main/": "file"}


def test_the_mounts_are_those_of_the_checkout(deployed: DeployedStack) -> None:
    mounts, methods = deployed.vault("sys/mounts", "sys/auth")
    engines = {f"{name}/" for name in deployed.names("vault/engines", ".json")}
    assert set(mounts) == engines | {"sys/", "cubbyhole/", "identity/"}
    assert set(methods) == {f"{name}/" for name in deployed.names("vault/auth", ".json")} | {"token/", "userpass/"}


def test_the_policies_are_those_of_the_checkout(deployed: DeployedStack) -> None:
    names = sorted(deployed.names("vault/policies", ".hcl"))
    listed, *policies = deployed.vault("LIST sys/policies/acl", *(f"sys/policies/acl/{name}" for name in names))
    assert set(listed["keys"]) == {*names, *BUILT_IN}
    for name, policy in zip(names, policies, strict=True):
        assert policy["policy"] == deployed.content(f"vault/policies/{name}.hcl"), name


def test_a_role_admits_its_own_job(deployed: DeployedStack) -> None:
    names = sorted(deployed.names("vault/auth/jwt-nomad/role", ".json"))
    listed, *roles = deployed.vault("LIST auth/jwt-nomad/role", *(f"auth/jwt-nomad/role/{name}" for name in names))
    assert listed["keys"] == names
    for name, role in zip(names, roles, strict=True):
        wanted = json.loads(deployed.content(f"vault/auth/jwt-nomad/role/{name}.json"))
        assert {key: role[key] for key in wanted} == wanted


def test_only_the_operator_logs_in_with_a_password(deployed: DeployedStack) -> None:
    (users,) = deployed.vault("LIST auth/userpass/users")
    assert users["keys"] == ["operator"]


def test_every_token_ends_within_hours(deployed: DeployedStack) -> None:
    tokens = deployed.tokens_of_vault()
    assert tokens
    endless = [token for token in tokens if not token["expire_time"] or token["creation_ttl"] > LONGEST_SECONDS]
    assert [(token["display_name"], token["policies"]) for token in endless] == []


@pytest.mark.parametrize(("job", "method", "path"), FORBIDDEN)
def test_a_workload_is_refused_what_belongs_to_another(
    deployed: DeployedStack, job: str, method: str, path: str
) -> None:
    login, reply = deployed.vault_as(job, job, (method, path))
    assert (login.status, reply.status) == (200, 403)


def test_a_workload_reads_its_own_secret(deployed: DeployedStack) -> None:
    _, reply = deployed.vault_as("user-service", "user-service", ("GET", "secret/data/user-service"))
    assert reply.json()["data"]["data"]["password_pepper"]


@pytest.mark.parametrize("role", ["user-service", "user-service-owner", "order-service", "order-service-owner"])
def test_a_workload_cannot_take_the_role_of_another(deployed: DeployedStack, role: str) -> None:
    (login,) = deployed.vault_as("gateway", role)
    assert login.status in {400, 403}  # OpenBao answers 400 to a claim that does not match
    assert "claim" in login.text


@pytest.mark.parametrize("service", ["user-service", "user-service-owner", "order-service", "order-service-owner"])
def test_a_database_login_ends_within_a_day(deployed: DeployedStack, service: str) -> None:
    (role,) = deployed.vault(f"database/roles/{service}")
    assert 0 < role["default_ttl"] <= 3600
    assert 0 < role["max_ttl"] <= 86400
    assert "VALID UNTIL '{{expiration}}'" in " ".join(role["creation_statements"])


def test_the_key_of_access_tokens_can_neither_be_exported_nor_deleted(deployed: DeployedStack) -> None:
    (key,) = deployed.vault("transit/keys/tokens")
    assert (key["exportable"], key["allow_plaintext_backup"], key["deletion_allowed"]) == (False, False, False)


def test_a_role_of_certificates_is_that_of_the_checkout(deployed: DeployedStack) -> None:
    names = sorted(deployed.names("vault/engines/mesh/roles", ".json"))
    listed, *roles = deployed.vault("LIST mesh/roles", *(f"mesh/roles/{name}" for name in names))
    assert set(listed["keys"]) == {*names, "leaf-cert"}  # Consul's own
    domain = deployed.consul("/v1/connect/ca/roots")["TrustDomain"]
    for name, role in zip(names, roles, strict=True):
        text = deployed.content(f"vault/engines/mesh/roles/{name}.json").replace("${trust_domain}", domain)
        wanted = json.loads(text)
        assert {key: role[key] for key in wanted} == wanted


def test_the_login_of_consul_is_the_only_one_by_secret_id(deployed: DeployedStack) -> None:
    roles, accessors = deployed.vault("LIST auth/approle/role", "LIST auth/approle/role/consul-ca/secret-id")
    assert roles["keys"] == ["consul-ca"]
    assert len(accessors["keys"]) == 1


@pytest.mark.disturbs
def test_the_audit_log_can_be_rotated_while_vault_runs(deployed: DeployedStack, host: Any) -> None:
    log = f"{deployed.state}/vault/audit.log"
    deployed.run("mv %s %s && kill -HUP $(cut -d' ' -f1 %s)", log, f"{log}.1", f"{deployed.state}/logs/vault.pid")
    eventually("there is a new one", lambda: host.file(log).exists)
    deployed.vault("LIST sys/policies/acl")
    eventually("requests are logged there", lambda: "sys/policies" in host.file(log).content_string)
    assert oct(host.file(log).mode) == oct(0o600)
