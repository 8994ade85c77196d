"""Applies the files in `consul/` to Consul: policies, roles, the auth method of workloads, the KV seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from consul import ACLPermissionDenied

from stack.cluster.clients import Clients
from stack.cluster.kv.seed import KvSeed
from stack.cluster.planned_changes import Change, render, shown
from stack.config import ROOT, Stack

FILES = ROOT / "consul"
AGENT = "nomad-agent"
BUILT_IN = "00000000-0000-0000-0000-"


class Consul:
    """Compares the running Consul with the files and yields the differences as changes."""

    def __init__(self, stack: Stack, clients: Clients) -> None:
        self.stack, self.clients, self.api = stack, clients, clients.consul

    @property
    def seed(self) -> KvSeed:
        return KvSeed(self.api.kv)

    def agent_changes(self) -> Iterator[Change]:
        """Yields changes to the tokens of the agents: Consul's own acts as its node, Nomad's has a policy."""
        config = self.api.agent.self()["Config"]
        node = {"NodeName": config["NodeName"], "Datacenter": config["Datacenter"]}
        yield from self._token("consul-agent", NodeIdentities=[node])
        yield from self._policy(FILES / "policies" / f"{AGENT}.hcl")
        yield from self._token("consul-nomad-agent", Policies=[{"Name": AGENT}])

    def changes(self) -> Iterator[Change]:
        """Yields changes to everything that services need."""
        services = [file for file in sorted((FILES / "policies").glob("*.hcl")) if file.stem != AGENT]
        for file in services:
            yield from self._policy(file)
            yield from self._role(file.stem)
        yield from self._remove_without_file({file.stem for file in services})
        for file in sorted((FILES / "auth").glob("*.json")):
            yield from self._auth_method(file)
        yield from self.seed.changes()

    def _token(self, name: str, **grants: Any) -> Iterator[Change]:
        secret, tokens, where = self.clients.credentials.token(name), self.api.acl.tokens, f"consul token {name}"
        wanted = {"SecretID": secret, "Description": name} | grants
        try:
            found = tokens.self(token=secret)
        except ACLPermissionDenied:
            yield Change(where, "", _grants(wanted), lambda: tokens.create(wanted))
            return
        if _grants(found) != _grants(wanted):
            update = partial(tokens.update, wanted, found["AccessorID"])
            yield Change(where, _grants(found), _grants(wanted), update)

    def _policy(self, file: Path) -> Iterator[Change]:
        wanted, where = file.read_text(), f"consul policy {file.stem}"
        found = _known(self.api.acl.policy.get(name=file.stem))
        if found is None:
            yield Change(where, "", wanted, lambda: self.api.acl.policy.create(file.stem, rules=wanted))
        elif found["Rules"] != wanted:
            update = self.api.acl.policy.update
            yield Change(where, found["Rules"], wanted, lambda: update(found["ID"], file.stem, rules=wanted))

    def _role(self, name: str) -> Iterator[Change]:
        found, roles = _known(self.api.acl.roles.get_by_name(name)), self.api.acl.roles
        wanted, where = {"Name": name, "Policies": [{"Name": name}]}, f"consul role {name}"
        if found is None:
            yield Change(where, "", _grants(wanted), lambda: roles.create(wanted))
        elif _grants(found) != _grants(wanted):
            yield Change(where, _grants(found), _grants(wanted), lambda: roles.update(wanted, found["ID"]))

    def _remove_without_file(self, services: set[str]) -> Iterator[Change]:
        """Yields the removal of every role and policy without a file, except those that are built into Consul."""
        acl = self.api.acl
        for role in acl.roles.list():
            if role["Name"] not in services:
                yield Change(f"consul role {role['Name']}", _grants(role), "", partial(acl.roles.delete, role["ID"]))
        for policy in acl.policy.list():
            if policy["Name"] not in services | {AGENT} and not policy["ID"].startswith(BUILT_IN):
                rules = acl.policy.get(policy["ID"])["Rules"] or "no rules"
                yield Change(f"consul policy {policy['Name']}", rules, "", partial(acl.policy.delete, policy["ID"]))

    def _auth_method(self, file: Path) -> Iterator[Change]:
        wanted = json.loads(render(file, self.stack)) | {"Name": file.stem}
        rules = wanted.pop("BindingRules")
        methods, where = self.api.acl.auth_method, f"consul auth method {file.stem}"
        found = _known(methods.get(file.stem))
        if found is None:
            yield Change(where, "", shown(wanted), lambda: methods.create(wanted))
        elif not _covers(found, wanted):
            before = shown({key: found.get(key) for key in wanted})
            yield Change(where, before, shown(wanted), lambda: methods.update(wanted, file.stem))
        yield from self._binding_rules(file.stem, rules, found is None)

    def _binding_rules(self, method: str, rules: list[dict[str, str]], new: bool) -> Iterator[Change]:
        listed = [] if new else [rule for rule in self.api.acl.binding_rule.list() if rule["AuthMethod"] == method]
        for rule in rules:
            payload = rule | {"AuthMethod": method}
            same = [found for found in listed if found["Description"] == rule["Description"]]
            where = f"consul binding rule {rule['Description']!r}"
            if not same:
                yield Change(where, "", shown(payload), partial(self.api.acl.binding_rule.create, payload))
            elif not _covers(same[0], payload):
                update = partial(self.api.acl.binding_rule.update, payload, same[0]["ID"])
                yield Change(where, shown(same[0]), shown(payload), update)
            listed = [found for found in listed if found not in same[:1]]
        for other in listed:
            where, delete = f"consul binding rule {other['Description']!r}", self.api.acl.binding_rule.delete
            yield Change(where, shown(other), "", partial(delete, other["ID"]))


def _grants(found: dict[str, Any]) -> str:
    """Returns the grants of a role or token without ids and empty lists, which Consul adds or leaves out."""
    kinds = ("Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies")
    return shown({kind: [_without_id(grant) for grant in found[kind]] for kind in kinds if found.get(kind)})


def _without_id(grant: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in grant.items() if key != "ID"}


def _known(answer: Any) -> Any:
    """Returns the object, or None: for a 404, python-consul2 returns (index, None)."""
    return None if isinstance(answer, tuple) else answer


def _covers(found: Any, wanted: Any) -> bool:
    """Returns whether every wanted field has its value; Consul adds fields of its own."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_covers(found.get(key), value) for key, value in wanted.items())
    return bool(found == wanted) or {str(found), str(wanted)} == {"1h", "1h0m0s"}
