"""Single faults of an infrastructure, as data: each is planted in a running stack and removed again by its undo.

They are what goes wrong in operation: a check, a token, a mode or a policy that somebody changed by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.infrastructure.deployed_stack import DeployedStack
from support.stack_under_test import eventually

Undo = Callable[[], object]
Plant = Callable[[DeployedStack], Undo]
MONTH = 30 * 24 * 3600


@dataclass(frozen=True)
class Fault:
    """What is wrong, the module of tests/infra that should find it, and how it is planted; `plant` returns the undo."""

    name: str
    module: str
    plant: Plant


# --- files and processes


def mode(path: str, bits: str) -> Plant:
    def plant(stack: DeployedStack) -> Undo:
        file = stack.host.file(f"{stack.state}/{path}")
        before = f"{file.mode:o}"
        stack.run("chmod %s %s", bits, file.path)
        return lambda: stack.run("chmod %s %s", before, file.path)

    return plant


def socket_for_everybody(stack: DeployedStack) -> Undo:
    socket = f"{stack.task_folder('edge')}/secrets/admin.sock"
    stack.run("chmod 0666 %s", socket)
    return lambda: stack.run("chmod 0600 %s", socket)


def copied_credential(stack: DeployedStack) -> Undo:
    copy = f"{stack.state}/logs/notes.txt"
    stack.run("cat %s > %s && chmod 0644 %s", f"{stack.state}/secrets/nomad-management", copy, copy)
    return lambda: stack.run("rm -f %s", copy)


def trusted_connections(stack: DeployedStack) -> Undo:
    file = f"{stack.state}/postgres/data/pg_hba.conf"
    stack.run("cp -p %s %s && sed -i '1i host all all 127.0.0.1/32 trust' %s", file, f"{file}.kept", file)
    return lambda: stack.run("mv %s %s", f"{file}.kept", file)


def background(command: str) -> Plant:
    """A process in the state folder, as one that somebody started there and left."""

    def plant(stack: DeployedStack) -> Undo:
        line = f"cd %s && (setsid {command} >/dev/null 2>&1 </dev/null & echo $!)"
        pid = stack.run(line, stack.state).strip()
        eventually("it runs there", lambda: any(str(process.pid) == pid for process in stack.processes()))
        return lambda: stack.run("kill -9 %s", pid)

    return plant


def few_open_files(stack: DeployedStack) -> Undo:
    pid = max(stack.pids("edge"))  # Envoy, which its launcher has started
    before = stack.run("prlimit --pid %s --nofile --output SOFT --noheadings", str(pid)).strip()
    stack.run("prlimit --pid %s --nofile=256:", str(pid))
    return lambda: stack.run(f"prlimit --pid %s --nofile={before}:", str(pid))


# --- Nomad


def missing_instance(stack: DeployedStack) -> Undo:
    _scale(stack, "gateway", "api", 1)
    eventually("one is gone", lambda: stack.passing("gateway") == 1, 60)

    def undo() -> None:
        _scale(stack, "gateway", "api", 2)
        eventually("both are back", lambda: stack.passing("gateway") == 2, 90)
        _settled(stack, "gateway")

    return undo


def _scale(stack: DeployedStack, job: str, group: str, count: int) -> None:
    stack.nomad(f"/v1/job/{job}/scale", "POST", {"Count": count, "Target": {"Group": group}})


def _settled(stack: DeployedStack, job: str) -> None:
    path = f"/v1/job/{job}/deployment"
    eventually(f"the deployment of {job} ends", lambda: stack.nomad(path)["Status"] == "successful", 90)


def removed_check(stack: DeployedStack) -> Undo:
    job = stack.nomad("/v1/job/user-service")
    version = job["Version"]
    job["TaskGroups"][0]["Services"][0]["Checks"].pop(0)
    stack.nomad("/v1/job/user-service", "POST", {"Job": job})

    def checks() -> list[int]:
        return [len(entry["Checks"]) for entry in stack.instances("user-service")]

    eventually("Consul has one check less", lambda: checks() == [2, 2], 60)

    def undo() -> None:
        stack.nomad("/v1/job/user-service/revert", "POST", {"JobID": "user-service", "JobVersion": version})
        eventually("Consul has every check", lambda: checks() == [3, 3] and stack.passing("user-service") == 2, 90)
        _settled(stack, "user-service")

    return undo


def undeclared_job(stack: DeployedStack) -> Undo:
    task = {"Name": "sleep", "Driver": "raw_exec", "Config": {"command": "/bin/sleep", "args": ["3600"]}}
    job = {"ID": "leftover", "Type": "service", "TaskGroups": [{"Name": "leftover", "Tasks": [task]}]}
    stack.nomad("/v1/jobs", "POST", {"Job": job})
    eventually("it runs", lambda: stack.allocations("leftover"), 30)

    def undo() -> None:
        stack.nomad("/v1/job/leftover?purge=true", "DELETE")
        eventually("it is gone", lambda: not any(each["ID"] == "leftover" for each in stack.nomad("/v1/jobs")), 30)
        eventually("its process is gone", lambda: all(each.name != "sleep" for each in stack.processes()), 30)

    return undo


def anonymous_jobs(stack: DeployedStack) -> Undo:
    rules = 'namespace "default" { policy = "read" }'
    stack.nomad("/v1/acl/policy/anonymous", "POST", {"Name": "anonymous", "Rules": rules})
    return lambda: stack.nomad("/v1/acl/policy/anonymous", "DELETE")


# --- Consul


def consul_token(**grants: Any) -> Plant:
    def plant(stack: DeployedStack) -> Undo:
        made = stack.consul("/v1/acl/token", "PUT", {"Description": "for a script", **grants})
        return lambda: stack.consul(f"/v1/acl/token/{made['AccessorID']}", "DELETE")

    return plant


def wider_consul_policy(stack: DeployedStack) -> Undo:
    policy = stack.consul("/v1/acl/policy/name/gateway")
    path = f"/v1/acl/policy/{policy['ID']}"
    stack.consul(path, "PUT", policy | {"Rules": policy["Rules"] + '\nkey_prefix "" { policy = "read" }\n'})
    return lambda: stack.consul(path, "PUT", policy)


def role_for_every_task(stack: DeployedStack) -> Undo:
    rule = {"AuthMethod": "nomad-workloads", "BindType": "role", "BindName": "order-service", "Selector": ""}
    made = stack.consul("/v1/acl/binding-rule", "PUT", rule)
    return lambda: stack.consul(f"/v1/acl/binding-rule/{made['ID']}", "DELETE")


def secret_in_a_key(stack: DeployedStack) -> Undo:
    stack.consul("/v1/kv/notes/password", "PUT", {"operator": stack.credential("operator-password")})
    return lambda: stack.consul("/v1/kv/notes/password", "DELETE")


# --- Vault


def changed_in_vault(path: str, **changes: Any) -> Plant:
    """Some values of what Vault has at a path are others."""

    def plant(stack: DeployedStack) -> Undo:
        (before,) = stack.vault(path)
        target = f"{path}/config" if path.startswith("transit/keys/") else path
        stack.change_vault(target, _writable(path, before) | changes)
        return lambda: stack.change_vault(target, _writable(path, before) | {key: before[key] for key in changes})

    return plant


def _writable(path: str, found: dict[str, Any]) -> dict[str, Any]:
    """What was read, without what Vault does not take back."""
    return {} if path.startswith("transit/keys/") else {key: value for key, value in found.items() if value is not None}


def wider_vault_policy(stack: DeployedStack) -> Undo:
    path = "sys/policies/acl/gateway"
    (before,) = stack.vault(path)
    wider = before["policy"] + '\npath "secret/data/*" { capabilities = ["read"] }\n'
    stack.change_vault(path, {"policy": wider})
    return lambda: stack.change_vault(path, {"policy": before["policy"]})


def vault_token_of_a_month(stack: DeployedStack) -> Undo:
    body = {"policies": ["gateway"], "ttl": f"{MONTH}s", "no_parent": True}
    made = stack.change_vault("auth/token/create", body)["auth"]
    return lambda: stack.change_vault("auth/token/revoke-accessor", {"accessor": made["accessor"]})


ROLE, ALL_JOBS = "auth/jwt-nomad/role/user-service", {"nomad_namespace": "default"}
FAULTS = (
    Fault("a credential of the operator is readable by everybody", "files", mode("secrets/consul-management", "0644")),
    Fault("a credential of the operator was copied into a log folder", "files", copied_credential),
    Fault("everybody may use the admin socket of the edge", "files", socket_for_everybody),
    Fault("Postgres asks for no password", "files", trusted_connections),
    Fault("something listens on all addresses", "network", background("python3 -m http.server 19999 --bind 0.0.0.0")),
    Fault(
        "a process runs as another user",
        "processes",
        background("setpriv --reuid=65534 --regid=65534 --clear-groups sleep 900"),
    ),
    Fault("the edge may open few files", "processes", few_open_files),
    Fault("an instance is missing", "workloads", missing_instance),
    Fault("a check is gone from a service", "workloads", removed_check),
    Fault("a job runs that has no file", "workloads", undeclared_job),
    Fault("an anonymous caller may read the jobs of Nomad", "workloads", anonymous_jobs),
    Fault("a policy of Consul is wider", "consul", wider_consul_policy),
    Fault("a token of Consul does not end", "consul", consul_token(Policies=[{"Name": "gateway"}])),
    Fault("every task has the role of another job in Consul", "consul", role_for_every_task),
    Fault("a key of Consul holds a secret", "consul", secret_in_a_key),
    Fault("a policy of Vault is wider", "vault", wider_vault_policy),
    Fault("a role of Vault admits every job", "vault", changed_in_vault(ROLE, bound_claims=ALL_JOBS)),
    Fault("a token of Vault lives for a month", "vault", vault_token_of_a_month),
    Fault(
        "a database login lives for a month", "vault", changed_in_vault("database/roles/order-service", max_ttl=MONTH)
    ),
    Fault(
        "the key of access tokens may be deleted",
        "vault",
        changed_in_vault("transit/keys/tokens", deletion_allowed=True),
    ),
)
