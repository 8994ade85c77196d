"""Consul: instances with their checks, tokens that end, identities that are narrow, keys without secrets."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack
from support.stack_under_test import eventually

# Instances of each service, and how many checks each instance has.
SERVICES = {
    "user-service": (2, 2),
    "order-service": (2, 2),
    "order-service-worker": (2, 2),
    "gateway": (2, 2),
    "edge": (1, 1),
    "postgres": (1, 1),
    "artifacts": (1, 1),
}
# The services that the workload identity of a job finds, beside its own key. Who reads its own intentions finds itself.
FINDS = {
    "user-service": {"postgres", "user-service"},
    "order-service": {"postgres", "user-service", "order-service"},
    "gateway": {"gateway", "user-service", "order-service"},
}
ENDLESS = {"Anonymous Token", "Initial Management Token", "consul-agent", "consul-nomad-agent"}


@pytest.fixture(scope="module")
def tokens(deployed: DeployedStack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployed.consul("/v1/acl/tokens")
    return found


def test_consul_has_elected_a_leader(deployed: DeployedStack) -> None:
    assert deployed.consul("/v1/status/leader") == f"127.0.0.1:{deployed.stack.port('consul_server')}"


@pytest.mark.parametrize(("service", "count"), [(service, count) for service, (count, _) in SERVICES.items()])
def test_a_service_is_in_consul_with_passing_checks(deployed: DeployedStack, service: str, count: int) -> None:
    eventually(f"{count} instances of {service} pass", lambda: deployed.passing(service) == count)
    for entry in deployed.instances(service):
        checks = [check["Status"] for check in entry["Checks"] if check["ServiceName"] == service]
        assert checks == ["passing"] * SERVICES[service][1]


@pytest.mark.parametrize("path", ["/v1/kv/config/gateway", "/v1/acl/tokens", "/v1/agent/self"])
def test_consul_refuses_an_anonymous_caller(deployed: DeployedStack, path: str) -> None:
    assert deployed.anonymous("consul", path).status == 403


def test_an_anonymous_caller_finds_no_service_and_changes_no_key(deployed: DeployedStack) -> None:
    assert deployed.anonymous("consul", "/v1/catalog/services").json() == {}
    assert deployed.anonymous("consul", "/v1/kv/?keys").json() == []
    assert deployed.anonymous("consul", "/v1/kv/config/gateway", "PUT", "{}").status == 403


def test_the_anonymous_token_grants_nothing(deployed: DeployedStack) -> None:
    token = deployed.consul("/v1/acl/token/00000000-0000-0000-0000-000000000002")
    assert grants(token) == {}


def grants(found: dict[str, Any]) -> dict[str, Any]:
    """What a token or role grants."""
    kinds = ("Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies")
    return {kind: found[kind] for kind in kinds if found.get(kind)}


def test_every_token_ends_but_those_of_the_agents_and_of_nomad_itself(tokens: list[dict[str, Any]]) -> None:
    """Nomad cannot renew a token; if one ended, checks would keep their last status, and templates their content."""
    endless = [token for token in tokens if not token.get("ExpirationTime")]
    of_nomad = {"nomad-services", "nomad-templates"}
    assert {token["Description"] for token in endless if token.get("AuthMethod") not in of_nomad} == ENDLESS
    assert [token for token in endless if token.get("AuthMethod") == "nomad-workloads"] == []


def test_only_the_edge_has_a_token_for_templates_and_one_for_each_allocation(
    deployed: DeployedStack, tokens: list[dict[str, Any]]
) -> None:
    found = [token for token in tokens if token.get("AuthMethod") == "nomad-templates"]
    assert [[role["Name"] for role in token["Roles"]] for token in found] == [["edge"]] * SERVICES["edge"][0]


def test_every_instance_has_a_token_of_registration(deployed: DeployedStack, tokens: list[dict[str, Any]]) -> None:
    instances = sum(count for count, _ in SERVICES.values())
    assert len([token for token in tokens if token.get("AuthMethod") == "nomad-services"]) >= instances
    assert {token["Description"] for token in tokens if not token.get("AuthMethod")} == ENDLESS


def test_only_the_operator_may_do_everything(tokens: list[dict[str, Any]]) -> None:
    names = {
        token["Description"]
        for token in tokens
        if any(policy["Name"] == "global-management" for policy in token.get("Policies") or [])
    }
    assert names == {"Initial Management Token"}


def test_the_agents_have_the_rights_of_a_node_and_of_a_registrar(deployed: DeployedStack) -> None:
    own, nomads = (
        deployed.consul("/v1/acl/token/self", token=deployed.credential(name))
        for name in ("consul-agent", "consul-nomad-agent")
    )
    assert grants(own) == {"NodeIdentities": [{"NodeName": "waypost-1", "Datacenter": "dc1"}]}
    assert [policy["Name"] for policy in nomads["Policies"]] == ["nomad-agent"]
    assert set(grants(nomads)) == {"Policies"}


def test_the_policies_are_those_of_the_checkout(deployed: DeployedStack) -> None:
    names = deployed.names("consul/policies", ".hcl")
    listed = {policy["Name"] for policy in deployed.consul("/v1/acl/policies")}
    assert listed == names | {"global-management", "builtin/global-read-only"} | (listed & {"builtin/read-only"})
    for name in names:
        rules = deployed.consul(f"/v1/acl/policy/name/{name}")["Rules"]
        assert rules == deployed.content(f"consul/policies/{name}.hcl"), name


def test_a_role_grants_the_policy_of_its_own_job(deployed: DeployedStack) -> None:
    roles = {role["Name"]: grants(role) for role in deployed.consul("/v1/acl/roles")}
    assert set(roles) == deployed.names("consul/policies", ".hcl") - {"nomad-agent"}
    for name, granted in roles.items():
        assert set(granted) == {"Policies"}
        assert [policy["Name"] for policy in granted["Policies"]] == [name]


@pytest.mark.parametrize("method", ["nomad-services", "nomad-templates", "nomad-workloads"])
def test_an_auth_method_and_its_rules_are_those_of_the_checkout(deployed: DeployedStack, method: str) -> None:
    wanted = json.loads(deployed.content(f"consul/auth/{method}.json"))
    found = deployed.consul(f"/v1/acl/auth-method/{method}")
    assert found["Config"]["BoundAudiences"] == wanted["Config"]["BoundAudiences"]
    assert found["Config"]["ClaimMappings"] == wanted["Config"]["ClaimMappings"]
    assert found.get("MaxTokenTTL", "0s") == {"1h": "1h0m0s", None: "0s"}[wanted.get("MaxTokenTTL")]
    rules = [rule for rule in deployed.consul("/v1/acl/binding-rules") if rule["AuthMethod"] == method]
    keys = ("Selector", "BindType", "BindName")
    assert [[rule[key] for key in keys] for rule in rules] == [
        [rule[key] for key in keys] for rule in wanted["BindingRules"]
    ]


@pytest.mark.parametrize("job", FINDS)
def test_a_workload_reads_its_own_key_and_finds_the_services_that_it_calls(deployed: DeployedStack, job: str) -> None:
    others = [f"/v1/kv/config/{other}" for other in FINDS if other != job]
    own, *denied, services = deployed.consul_as(job, f"/v1/kv/config/{job}", *others, "/v1/catalog/services")
    assert own.status == 200
    assert {reply.status for reply in denied} == {403}
    assert set(services.json()) == FINDS[job]


@pytest.mark.parametrize("job", FINDS)
def test_a_workload_reads_the_intentions_of_the_services_that_it_finds(deployed: DeployedStack, job: str) -> None:
    services = deployed.names("consul/intentions", ".hcl")
    path = "/v1/connect/intentions/match?by=destination&name="
    replies = dict(zip(services, deployed.consul_as(job, *(f"{path}{name}" for name in services)), strict=True))
    assert {name for name, reply in replies.items() if reply.status == 200} == services & FINDS[job]
    for name in services & FINDS[job]:
        assert {each["SourceName"] for each in replies[name].json()[name]} > {"operator"}


@pytest.mark.parametrize("kind", ["service-intentions", "service-defaults"])
def test_the_config_entries_are_those_of_the_checkout(deployed: DeployedStack, kind: str) -> None:
    folder = {"service-intentions": "consul/intentions", "service-defaults": "consul/config/service-defaults"}[kind]
    assert {entry["Name"] for entry in deployed.consul(f"/v1/config/{kind}")} == deployed.names(folder, ".hcl")


def test_the_certificate_authority_of_the_mesh_is_vault_and_has_one_active_root(deployed: DeployedStack) -> None:
    assert deployed.consul("/v1/connect/ca/configuration")["Provider"] == "vault"
    (root,) = deployed.vault("mesh-root/cert/ca")
    active = [each["RootCert"].strip() for each in deployed.consul("/v1/connect/ca/roots")["Roots"] if each["Active"]]
    assert active == [root["certificate"].strip()]


def test_every_service_has_its_settings_and_no_key_holds_a_secret(deployed: DeployedStack, secrets: set[str]) -> None:
    entries = {
        entry["Key"]: base64.b64decode(entry["Value"] or "").decode() for entry in deployed.consul("/v1/kv/?recurse")
    }
    for name in deployed.names("consul/kv/config", ".json"):
        assert json.loads(entries[f"config/{name}"])
    assert {key for key, value in entries.items() if any(secret in value for secret in secrets)} == set()


@pytest.mark.disturbs
def test_a_key_can_be_written_and_read_back(deployed: DeployedStack) -> None:
    key = "/v1/kv/infra-test/greeting"
    assert deployed.consul(key, "PUT", "hello")
    try:
        assert deployed.consul(f"{key}?raw") == "hello"
    finally:
        deployed.consul(key, "DELETE")
    keys = deployed.consul("/v1/kv/?keys")
    assert "infra-test/greeting" not in keys
