"""Modes and owners of what the stack keeps on disk: credentials, data, logs with secrets, sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack

CREDENTIALS = {
    "consul-agent",
    "consul-ca-role-id",
    "consul-ca-secret-id",
    "consul-management",
    "consul-nomad-agent",
    "nomad-management",
    "operator-password",
    "unseal-key",
}
PRIVATE_FOLDERS = ("secrets", "consul/data", "nomad/data", "vault/data", "postgres/data", "postgres/run")
PRIVATE_FILES = ("consul/stack.json", "nomad/stack.json", "vault/stack.json", "vault/audit.log", "vault/data/vault.db")


@pytest.mark.parametrize("path", PRIVATE_FOLDERS)
def test_only_its_owner_opens_a_private_folder(deployed: DeployedStack, host: Any, path: str) -> None:
    folder = host.file(f"{deployed.state}/{path}")
    assert folder.is_directory
    assert oct(folder.mode) == oct(0o700)
    assert folder.user == owner(deployed, path)


def test_the_secrets_of_tasks_are_in_memory_if_nomad_may_mount(deployed: DeployedStack, host: Any) -> None:
    if owner(deployed, "nomad/data") != "root":
        pytest.skip("as an ordinary user Nomad mounts nothing; only this user can read the folder")
    for job in ("edge", "gateway", "order-service", "postgres", "user-service"):
        for folder in deployed.task_folders(job):
            kinds = host.check_output(f"stat -f -c %T {folder}/secrets {folder}/private")
            assert kinds.split() == ["tmpfs", "tmpfs"], folder


@pytest.mark.parametrize("path", PRIVATE_FILES)
def test_only_its_owner_reads_a_private_file(deployed: DeployedStack, host: Any, path: str) -> None:
    file = host.file(f"{deployed.state}/{path}")
    assert oct(file.mode) == oct(0o600)
    assert file.user == owner(deployed, path)


def owner(deployed: DeployedStack, path: str) -> str:
    """Who deployed the stack; Postgres refuses to run as root, so root gives its folder to `nobody`."""
    user = str(deployed.host.file(deployed.state).user)
    return "nobody" if user == "root" and path.startswith("postgres/") else user


def test_only_their_owner_reads_the_credentials_of_the_operator(deployed: DeployedStack, host: Any) -> None:
    folder = f"{deployed.state}/secrets"
    assert set(host.file(folder).listdir()) == CREDENTIALS
    for name in CREDENTIALS:
        file = host.file(f"{folder}/{name}")
        assert (name, oct(file.mode), file.user) == (name, oct(0o600), owner(deployed, name))


def test_no_file_that_others_may_read_holds_a_credential_of_the_operator(deployed: DeployedStack) -> None:
    found = deployed.run(
        "cd %s && find . \\( -path ./postgres -o -path ./zipapps -o -path ./artifacts -o -path ./nomad/data \\) -prune "
        "-o -type f -perm /044 -size -20M -print0 "
        "| xargs -0 -r sh -c 'for secret in secrets/*; do grep -lFf $secret \"$@\" /dev/null; done; true' search",
        deployed.state,
    )
    assert found == ""


def test_only_its_owner_opens_the_admin_socket_of_envoy(deployed: DeployedStack, host: Any) -> None:
    socket = host.file(f"{deployed.task_folder('edge')}/secrets/admin.sock")
    assert socket.is_socket
    assert oct(socket.mode) == oct(0o600)
    assert socket.user == owner(deployed, "edge")


def test_postgres_asks_everybody_who_connects_by_network_for_a_password(deployed: DeployedStack, host: Any) -> None:
    lines = host.file(f"{deployed.state}/postgres/data/pg_hba.conf").content_string.splitlines()
    rules = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert {rule[-1] for rule in rules if rule[0] != "local"} == {"scram-sha-256"}
    assert {tuple(rule[-2:]) for rule in rules if rule[0] == "local"} == {("peer", "map=owner")}


def test_the_socket_of_postgres_makes_only_the_owner_of_the_stack_its_superuser(
    deployed: DeployedStack, host: Any
) -> None:
    mapped = host.file(f"{deployed.state}/postgres/data/pg_ident.conf").content_string
    assert mapped.split() == ["owner", f'"{owner(deployed, "secrets")}"', "postgres"]


def test_consul_and_nomad_work_with_the_tokens_that_deploy_made_for_them(deployed: DeployedStack, host: Any) -> None:
    configured = json.loads(host.file(f"{deployed.state}/consul/stack.json").content_string)
    assert configured["acl"]["tokens"]["agent"] == host.file(f"{deployed.state}/secrets/consul-agent").content_string
    configured = json.loads(host.file(f"{deployed.state}/nomad/stack.json").content_string)
    assert configured["consul"]["token"] == host.file(f"{deployed.state}/secrets/consul-nomad-agent").content_string
