"""One name everywhere, and a path in the checkout is an address in the cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stack.cluster import nomad
from stack.cluster.clients import OPERATOR

from .repository import ROOT, SERVICES, blocks, job_text, package

PLACES = (
    "nomad/jobs/{}.vars.hcl",
    "consul/kv/config/{}.json",
    "consul/policies/{}.hcl",
    "vault/policies/{}.hcl",
    "vault/auth/jwt-nomad/role/{}.json",
)
# Vault counts a signature as an update; it changes nothing.
SIGNING = {service: {f"mesh/sign/{service}": {"update"}} for service in SERVICES}
SIGNING["user-service"]["transit/sign/tokens"] = {"update"}
SIGNING["edge"] = {"mesh/issue/edge": {"update"}}
# Consul is the certificate authority of the mesh; its policy belongs to no job (deployment/test_mesh.py).
CONSUL = "consul-ca"
FOLDERS = [ROOT / folder for folder in SERVICES.values()]
WITH_DATABASE = [service for service in SERVICES if (ROOT / SERVICES[service] / "migrations").is_dir()]
# The roles in Vault with which a service applies its migrations.
OWNERS = {f"{service}-owner" for service in WITH_DATABASE}


def stems(folder: str, suffix: str) -> set[str]:
    return {path.name.removesuffix(suffix) for path in (ROOT / folder).glob(f"*{suffix}")}


def vault_file(path: str) -> Any:
    return json.loads((ROOT / "vault" / f"{path}.json").read_text())


def test_every_service_folder_is_deployed_under_its_name() -> None:
    folders = {f"{path.name}-service" for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists()}
    assert folders | {"gateway"} == set(SERVICES)
    assert all(folder.name == service.replace("-", "_") for service, folder in zip(SERVICES, FOLDERS, strict=True))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_found_under_its_name(service: str, place: str) -> None:
    assert (ROOT / place.format(service)).is_file()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_calls_itself_by_its_name(service: str) -> None:
    assert f'run("{service}"' in (ROOT / SERVICES[service] / "__main__.py").read_text()


@pytest.mark.parametrize("job", nomad.names())
def test_a_job_and_its_service_in_consul_have_the_name_of_the_file(job: str) -> None:
    text = job_text(job)
    (labels,) = [labels for labels, _ in blocks(text, r'job "([^"]+)"')]
    assert re.findall(r'^job\s*=\s*"([^"]+)"', text, re.MULTILINE) == ([job] if job in SERVICES else [])
    assert labels == (nomad.SHARED if job in SERVICES else job,)
    assert re.search(rf'\b(name|service)\s*=\s*"{job}"', text)


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("consul/kv/config", ".json"),
        ("consul/policies", ".hcl"),
        ("consul/config/service-defaults", ".hcl"),
        ("consul/intentions", ".hcl"),
        ("vault/policies", ".hcl"),
        ("vault/engines/mesh/roles", ".json"),
        ("vault/auth/jwt-nomad/role", ".json"),
        ("vault/engines/database/roles", ".json"),
    ],
)
def test_no_file_belongs_to_a_job_that_does_not_exist(folder: str, suffix: str) -> None:
    others = {"consul/policies": {"nomad-agent"}, "vault/policies": {CONSUL}, "vault/engines/mesh/roles": {OPERATOR}}
    owners = OWNERS if folder.startswith("vault/") else set()
    assert stems(folder, suffix) - others.get(folder, set()) - owners <= set(nomad.names())


@pytest.mark.parametrize("name", sorted(stems("vault/auth/jwt-nomad/role", ".json")))
def test_a_role_in_vault_admits_its_own_job_and_gives_its_own_policy(name: str) -> None:
    role = vault_file(f"auth/jwt-nomad/role/{name}")
    job = name.removesuffix("-owner") if name in OWNERS else name
    assert role["bound_claims"] == {"nomad_namespace": "default", "nomad_job_id": job}
    assert role["bound_audiences"] == ["vault.io"]
    assert role["token_policies"] == [name]


@pytest.mark.parametrize("service", WITH_DATABASE)
@pytest.mark.parametrize(("suffix", "database_role"), [("", "{}_runtime"), ("-owner", "{}")], ids=["runtime", "owner"])
def test_a_database_login_is_a_member_of_the_database_role_of_its_purpose(
    service: str, suffix: str, database_role: str
) -> None:
    role = vault_file(f"engines/database/roles/{service}{suffix}")
    create, switch, search = role["creation_statements"]
    wanted = database_role.format(package(service))
    assert create.endswith(f" IN ROLE {wanted};")
    assert switch.endswith(f" SET role = '{wanted}';")
    assert search.endswith(f" SET search_path = '{package(service)}';")


def test_only_services_with_a_database_get_logins_to_one() -> None:
    assert stems("vault/engines/database/roles", ".json") == {*WITH_DATABASE, *OWNERS}
    assert set(vault_file("engines/database/config/postgres")["allowed_roles"]) == {*WITH_DATABASE, *OWNERS}


@pytest.mark.parametrize("owner", sorted(f"{service}-owner" for service in WITH_DATABASE))
def test_the_login_of_an_owner_ends_with_its_token_within_an_hour(owner: str) -> None:
    token, login = vault_file(f"auth/jwt-nomad/role/{owner}"), vault_file(f"engines/database/roles/{owner}")
    assert "token_period" not in token, "a periodic token can be renewed without end"
    assert max(token["token_max_ttl"], login["max_ttl"]) <= 3600
    assert set(paths(owner)) == {f"database/creds/{owner}"}


def rules(service: str) -> set[tuple[str, str, str]]:
    """What a Consul policy allows: resource, name and level."""
    text = (ROOT / "consul" / "policies" / f"{service}.hcl").read_text()
    found = list(blocks(text, r'(\w+) "([^"]*)"'))
    outside = re.sub(r"\{[^}]*\}", "", text)
    assert not re.search(r"^\s*\w+\s*=", outside, re.MULTILINE), "acl, operator, keyring: nobody needs those"
    return {(kind, name, re.findall(r'"(\w+)"', body)[0]) for (kind, name), body in found}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_its_own_key_in_consul_and_no_other(service: str) -> None:
    assert {name for kind, name, _ in rules(service) if kind.startswith("key")} == {f"config/{service}"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_writes_nothing_in_consul_and_asks_for_no_wildcard_but_nodes(service: str) -> None:
    assert {level for *_, level in rules(service)} == {"read"}
    assert {rule for rule in rules(service) if rule[0].endswith("_prefix")} <= {("node_prefix", "", "read")}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_finds_only_services_that_exist(service: str) -> None:
    seen = {name for kind, name, _ in rules(service) if kind == "service"}
    own = {service} if service in stems("consul/intentions", ".hcl") else set()
    assert seen <= set(nomad.names()) - {service} | own


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_its_own_intentions_and_no_other(service: str) -> None:
    text = (ROOT / "consul" / "policies" / f"{service}.hcl").read_text()
    found = {(kind, name): body for (kind, name), body in blocks(text, r'(\w+) "([^"]*)"') if "intentions" in body}
    own = {("service", service)} if service in stems("consul/intentions", ".hcl") else set()
    assert set(found) == own
    assert all(re.search(r'^\s*intentions\s*=\s*"read"$', body, re.MULTILINE) for body in found.values())


def test_the_nomad_agent_may_register_services_and_no_more() -> None:
    assert rules("nomad-agent") == {
        ("agent_prefix", "", "read"),
        ("node_prefix", "", "read"),
        ("service_prefix", "", "write"),
    }


def paths(job: str) -> dict[str, set[str]]:
    """What a Vault policy allows: path to capabilities."""
    text = (ROOT / "vault" / "policies" / f"{job}.hcl").read_text()
    found = blocks(text, r'path "([^"]+)"')
    return {path: set(re.findall(r'"(\w+)"', body.partition("allowed_parameters")[0])) for (path,), body in found}


@pytest.mark.parametrize("job", SERVICES)
def test_a_service_sends_nothing_but_its_request_and_its_life_to_be_signed(job: str) -> None:
    """OpenBao gives a parameter such as not_after precedence over the longest life of the role."""
    text = (ROOT / "vault" / "policies" / f"{job}.hcl").read_text()
    (body,) = [body for (path,), body in blocks(text, r'path "([^"]+)"') if path == f"mesh/sign/{job}"]
    assert re.findall(r'"(\w+)" *= \[\]', body) == ["csr", "common_name", "ttl"]


@pytest.mark.parametrize("job", sorted(stems("vault/policies", ".hcl") - {CONSUL}))
def test_a_policy_in_vault_names_each_path_in_full_and_changes_nothing(job: str) -> None:
    found = paths(job)
    assert found
    assert not [path for path in found if re.search(r"[*+]", path)]
    assert {path: wanted for path, wanted in found.items() if wanted != {"read"}} == SIGNING.get(job, {})


@pytest.mark.parametrize("job", sorted(stems("vault/policies", ".hcl")))
def test_a_policy_in_vault_opens_no_secret_or_login_of_another(job: str) -> None:
    private = [Path(path).name for path in paths(job) if path.startswith(("secret/", "database/"))]
    assert set(private) <= {job}


def test_every_secret_has_a_reader_and_every_reader_a_secret() -> None:
    kept = stems("vault/engines/secret/data", ".json")
    read = {job for job in stems("vault/policies", ".hcl") if f"secret/data/{job}" in paths(job)}
    assert kept == read
