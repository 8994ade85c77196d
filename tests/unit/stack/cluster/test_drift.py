"""What differs from the files in Consul and Vault: a wider grant does, what a server adds by itself does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stack.cluster import consul, vault
from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change
from stack.config import Stack

NARROW = {"ID": "r1", "Name": "gateway", "Policies": [{"ID": "p1", "Name": "gateway"}], "Hash": "x"}
BUILT_IN = {"ID": "00000000-0000-0000-0000-000000000001", "Name": "global-management"}


class Listed:
    """Roles or policies of a Consul, and what was deleted of them."""

    def __init__(self, *found: dict[str, Any]) -> None:
        self.found, self.deleted = found, list[str]()

    def list(self) -> tuple[dict[str, Any], ...]:
        return self.found

    def get(self, key: str) -> dict[str, Any]:
        return {"ID": key, "Rules": "everything"}

    def get_by_name(self, name: str) -> dict[str, Any]:
        return next(role for role in self.found if role["Name"] == name)

    def delete(self, key: str) -> None:
        self.deleted.append(key)


def server(roles: Listed, policies: Listed) -> consul.Consul:
    api = SimpleNamespace(acl=SimpleNamespace(roles=roles, policy=policies))
    return consul.Consul(Stack("dev", 0), cast(Clients, SimpleNamespace(consul=api)))


@pytest.mark.parametrize(
    ("more", "differs"),
    [
        ({}, False),
        ({"ServiceIdentities": [], "NodeIdentities": None}, False),
        ({"Policies": [{"ID": "p1", "Name": "gateway"}, {"ID": "p2", "Name": "global-management"}]}, True),
        ({"Policies": []}, True),
        ({"NodeIdentities": [{"NodeName": "waypost-1", "Datacenter": "dc1"}]}, True),
        ({"TemplatedPolicies": [{"TemplateName": "builtin/node"}]}, True),
    ],
)
def test_a_role_that_grants_something_else_differs(more: dict[str, Any], differs: bool) -> None:
    found = list(server(Listed(NARROW | more), Listed())._role("gateway"))
    assert [change.where for change in found] == (["consul role gateway"] if differs else [])


def test_what_no_file_names_is_removed_and_what_consul_brings_stays() -> None:
    roles = Listed(NARROW, {"ID": "r2", "Name": "by-hand"})
    named = [{"ID": f"p{name}", "Name": name} for name in ("gateway", "nomad-agent", "by-hand")]
    policies = Listed(BUILT_IN, *named)
    found: list[Change] = list(server(roles, policies)._remove_without_file({"gateway"}))
    assert [(change.where, change.after) for change in found] == [
        ("consul role by-hand", ""),
        ("consul policy by-hand", ""),
    ]
    for change in found:
        change.apply()
    assert (roles.deleted, policies.deleted) == (["r2"], ["pby-hand"])


def test_a_table_inside_a_vault_role_is_compared_too() -> None:
    wanted = {"bound_claims": {"nomad_job_id": "gateway", "nomad_namespace": "default"}, "password": "never read back"}
    assert vault._covers({"bound_claims": dict(wanted["bound_claims"]), "more": 1}, wanted)  # type: ignore[call-overload]
    assert not vault._covers({"bound_claims": {"nomad_namespace": "default"}}, wanted)


def test_a_mount_without_a_lease_of_its_own_is_as_a_file_that_names_none() -> None:
    wanted = {"type": "database", "description": "Logins"}
    found = wanted | {"config": {"default_lease_ttl": 0, "max_lease_ttl": 0}, "options": {}}
    assert vault._tunable(found) == vault._tunable(wanted)
    assert vault._tunable(found | {"config": {"max_lease_ttl": 9}}) != vault._tunable(wanted)


class Paths:
    """The paths of a Vault that hold an object each."""

    def __init__(self) -> None:
        self.found = dict[str, dict[str, Any]]()

    def read(self, path: str) -> dict[str, Any] | None:
        return {"data": self.found[path]} if path in self.found else None

    def list(self, path: str) -> dict[str, Any] | None:
        names = [found.removeprefix(f"{path}/") for found in self.found if found.startswith(f"{path}/")]
        return {"data": {"keys": names}} if names else None

    def write_data(self, path: str, data: dict[str, Any]) -> None:
        self.found[path] = data

    def delete(self, path: str) -> None:
        del self.found[path]


def certificate_roles(folder: Path, paths: Paths, trust_domain: str) -> list[Change]:
    stack = SimpleNamespace(state=folder, url=lambda _: "", port=lambda _: 1)
    api = vault.Vault(cast(Stack, stack), cast(Clients, SimpleNamespace(vault=paths)))
    return list(api.certificate_role_changes(trust_domain))


def test_the_roles_of_certificates_name_the_trust_domain_and_the_one_of_consul_stays(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    paths = Paths()
    changes = certificate_roles(tmp_path, paths, "1.consul")
    assert {change.action for change in changes} == {"add"}
    paths.found |= {"mesh/roles/leaf-cert": {"allow_any_name": True}, "mesh/roles/by-hand": {"allow_any_name": True}}
    for change in changes:
        change.apply()
    assert paths.found["mesh/roles/gateway"]["allowed_uri_sans"] == ["spiffe://1.consul/ns/default/dc/dc1/svc/gateway"]
    (removed,) = certificate_roles(tmp_path, paths, "1.consul")
    assert (removed.where, removed.action) == ("vault mesh/roles/by-hand", "remove")
    removed.apply()
    assert certificate_roles(tmp_path, paths, "1.consul") == []
    assert len(certificate_roles(tmp_path, paths, "2.consul")) == len(changes)


def test_a_role_of_certificates_that_was_widened_differs(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    paths = Paths()
    for change in certificate_roles(tmp_path, paths, "1.consul"):
        change.apply()
    paths.found["mesh/roles/gateway"] = paths.found["mesh/roles/gateway"] | {"allowed_uri_sans": ["spiffe://*"]}
    assert [change.where for change in certificate_roles(tmp_path, paths, "1.consul")] == ["vault mesh/roles/gateway"]
