"""The files of the mesh: a certificate has one name, an intention names each method, Consul has few rights in Vault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stack.cluster.clients import OPERATOR
from stack.cluster.mesh import certificate_authority
from stack.cluster.mesh.config_entries import FILES, FOLDERS, read

from ..repository import ROOT, SERVICES, blocks

ROLES = ROOT / "vault" / "engines" / "mesh" / "roles"
EDGE = "edge"
NAMES = [*SERVICES, EDGE, OPERATOR]
HOUR = 3600
TEN_YEARS = 10 * 365 * 24 * HOUR
WITH_INTENTIONS = sorted(file.stem for file in (FILES / "intentions").glob("*.hcl"))
POLICY = (ROOT / "vault" / "policies" / "edge.hcl").read_text()
TEMPLATE = (ROOT / "nomad" / "edge" / "leaf.json").read_text()
WITH_METHODS = sorted(set(WITH_INTENTIONS) - {"gateway"})


def vault_file(path: str) -> Any:
    return json.loads((ROOT / "vault" / f"{path}.json").read_text())


def consul_policy() -> dict[str, set[str]]:
    """What Consul may do in Vault: path to capabilities."""
    text = (ROOT / "vault" / "policies" / "consul-ca.hcl").read_text()
    return {path: set(re.findall(r'"(\w+)"', body)) for (path,), body in blocks(text, r'path "([^"]+)"')}


def job_values(service: str) -> str:
    return (ROOT / "nomad" / "jobs" / f"{service}.vars.hcl").read_text()


def sources(service: str) -> dict[str, dict[str, Any]]:
    """The intentions of a service by caller."""
    entry = read(FILES / "intentions" / f"{service}.hcl", "service-intentions")
    found = {source["Name"]: source for source in entry["Sources"]}
    assert len(found) == len(entry["Sources"]), "a caller is named twice"
    return found


# --- config entries of Consul


def test_no_file_is_of_a_kind_that_is_not_applied() -> None:
    files = [file for folder in ("config", "intentions") for file in (FILES / folder).rglob("*") if file.is_file()]
    assert {file.parent for file in files} <= {FILES / folder for folder in FOLDERS.values()}
    assert {file.suffix for file in files} == {".hcl"}


@pytest.mark.parametrize("service", WITH_INTENTIONS)
def test_consul_knows_what_a_service_speaks(service: str) -> None:
    protocol = read(FILES / "config" / "service-defaults" / f"{service}.hcl", "service-defaults")["Protocol"]
    assert f'"{protocol}"' in dict(re.findall(r"^(\w+) *= *(.*)$", job_values(service), re.MULTILINE))["protocol"]


@pytest.mark.parametrize("service", WITH_METHODS)
def test_an_intention_names_each_method_in_full_and_only_the_operator_may_call_all(service: str) -> None:
    found = sources(service)
    assert found.pop(OPERATOR) == {"Name": OPERATOR, "Action": "allow"}
    assert not [caller for caller, source in found.items() if "Action" in source]
    permissions = [permission for source in found.values() for permission in source["Permissions"]]
    assert permissions
    assert {(each["Action"], *each["HTTP"]) for each in permissions} == {("allow", "PathExact")}


def test_the_edge_may_send_each_request_to_the_gateway_and_no_service_any() -> None:
    """It forwards what callers send, also to paths that do not exist."""
    assert sources("gateway") == {name: {"Name": name, "Action": "allow"} for name in (EDGE, OPERATOR)}


@pytest.mark.parametrize("service", WITH_INTENTIONS)
def test_a_caller_has_a_certificate(service: str) -> None:
    assert set(sources(service)) <= set(NAMES) - {service}


def test_what_no_intention_allows_is_denied() -> None:
    text = (ROOT / "consul" / "agent.hcl").read_text()
    assert re.search(r'^default_intention_policy\s*=\s*"deny"$', text, re.MULTILINE)


# --- certificates


def test_every_service_has_a_role_for_its_certificate_and_so_has_the_operator() -> None:
    assert {file.stem for file in ROLES.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_has_the_name_of_its_service_and_no_other(name: str) -> None:
    """But for the edge, which callers reach by https; its policy says by which names."""
    role = json.loads((ROLES / f"{name}.json").read_text())
    assert role["allowed_domains"] == [f"{name}.mesh", *(["localhost"] if name == EDGE else [])]
    assert role["allowed_uri_sans"] == [f"spiffe://${{trust_domain}}/ns/default/dc/dc1/svc/{name}"]
    assert role["allow_ip_sans"] is (name == EDGE)
    wide = ("allow_any_name", "allow_glob_domains", "allow_localhost", "allow_subdomains")
    assert {key: role[key] for key in (*wide, "allow_wildcard_certificates", "use_csr_common_name")} == dict.fromkeys(
        (*wide, "allow_wildcard_certificates", "use_csr_common_name"), False
    )
    assert (role["allow_bare_domains"], role["enforce_hostnames"], role["use_csr_sans"]) == (True, True, True)


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_is_for_tls_alone_and_ends_within_an_hour(name: str) -> None:
    role = json.loads((ROLES / f"{name}.json").read_text())
    assert (role["key_type"], role["key_bits"], role["key_usage"]) == ("ec", 256, ["DigitalSignature"])
    assert (role["code_signing_flag"], role["email_protection_flag"]) == (False, False)
    assert (role["client_flag"], role["server_flag"]) == (True, name != OPERATOR), "nobody calls an operator"
    assert role["ttl"] == role["max_ttl"] == HOUR
    assert (role["no_store"], role["generate_lease"]) == (True, False), "storage would grow with each renewal"


def test_the_edge_gets_no_certificate_but_the_one_that_its_template_asks_for() -> None:
    """OpenBao gives a parameter such as not_after precedence over the longest life of the role."""
    ((path, body),) = [(path, body) for (path,), body in blocks(POLICY, r'path "([^"]+)"')]
    allowed = dict(re.findall(r'"(\w+)" *= \[(.*)\]', body.partition("allowed_parameters")[2]))
    asked = dict(part.split("=", 1) for part in re.findall(r'"(\w+=[^"]*)"', TEMPLATE))
    assert path == re.findall(r'pkiCert "([^"]+)"', TEMPLATE)[0] == "mesh/issue/edge"
    assert asked.pop("uri_sans") == "spiffe://%s/ns/default/dc/dc1/svc/edge"
    assert allowed.pop("uri_sans") == "", "the role allows one"
    assert allowed == {name: f'"{value}"' for name, value in asked.items()}


def test_nomad_replaces_the_certificate_of_the_edge_at_half_of_its_life() -> None:
    """It does so when nine tenths of the time between the two dates of a certificate are over."""
    role = json.loads((ROLES / f"{EDGE}.json").read_text())
    began = role["not_before_duration"]
    assert 0.9 * (began + role["ttl"]) - began == role["ttl"] / 2
    others = [json.loads((ROLES / f"{name}.json").read_text()) for name in NAMES if name != EDGE]
    assert not [other for other in others if "not_before_duration" in other]


def test_the_datacenter_in_a_spiffe_name_is_that_of_the_agent() -> None:
    assert re.search(r'^datacenter\s*=\s*"dc1"$', (ROOT / "consul" / "agent.hcl").read_text(), re.MULTILINE)


def test_the_root_lasts_for_years_and_what_the_intermediate_signs_for_an_hour() -> None:
    # Consul names no lifetime for the root, so the default of the mount is used.
    for mount in certificate_authority.ROOT_MOUNTS:
        assert vault_file(f"engines/{mount}")["config"] == {"default_lease_ttl": TEN_YEARS, "max_lease_ttl": TEN_YEARS}
    assert vault_file("engines/mesh")["config"] == {"default_lease_ttl": HOUR, "max_lease_ttl": HOUR}


# --- the certificate authority


def test_consul_uses_the_mounts_and_the_login_that_are_in_files() -> None:
    wanted = json.loads((ROOT / "consul" / "connect-ca.json").read_text())
    assert wanted["Provider"] == "vault"
    config = wanted["Config"]
    assert (config["RootPKIPath"], config["IntermediatePKIPath"]) == ("${root_mount}", "mesh")
    assert config["LeafCertTTL"] == "1h"
    method = config["AuthMethod"]
    assert vault_file(f"auth/{method['MountPath']}")["type"] == method["Type"] == "approle"
    names = (certificate_authority.ROLE_ID, certificate_authority.SECRET_ID)
    assert [Path(path).name for path in method["Params"].values()] == list(names)
    assert not {"Token", "token"} & set(config)


def test_the_login_of_consul_has_its_own_policy_alone_and_ends_unless_it_is_renewed() -> None:
    assert [file.stem for file in (ROOT / "vault" / "auth" / "approle" / "role").iterdir()] == [
        certificate_authority.ROLE
    ]
    role = vault_file(f"auth/approle/role/{certificate_authority.ROLE}")
    assert role["token_policies"] == ["consul-ca"]
    assert role["bind_secret_id"] is True
    assert 0 < role["token_period"] <= HOUR


def test_consul_signs_certificates_with_its_own_role_and_changes_no_mount_and_no_role_of_a_service() -> None:
    found = consul_policy()
    assert not [path for path in found if path.startswith("sys/")]
    # It finds the certificate that belongs to its new key by the ids that Vault gives.
    assert {path: wanted for path, wanted in found.items() if re.search(r"[*+]", path)} == {"mesh/issuer/+": {"read"}}
    # OpenBao demands sudo for having the old root sign the new one, in both mounts.
    crossing = {f"{mount}/root/sign-self-issued" for mount in certificate_authority.ROOT_MOUNTS}
    assert {path for path, wanted in found.items() if "sudo" in wanted} == crossing
    assert {capability for wanted in found.values() for capability in wanted} == {"read", "update", "sudo"}
    assert {path for path in found if re.match("mesh/(sign|issue|roles)/", path)} == {
        "mesh/roles/leaf-cert",
        "mesh/sign/leaf-cert",
    }
