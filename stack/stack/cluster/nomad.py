"""Plans and runs the jobs in `nomad/jobs`, and fills their variables with the values of this stack.

A job NAME is described by `NAME.nomad.hcl`, or by `NAME.vars.hcl` and `service.nomad.hcl`, which all services share.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nomad.api.exceptions import BadRequestNomadException, BaseNomadException, URLNotFoundNomadException

from stack.build.tools import Tools
from stack.build.zipapps import Artifact
from stack.cluster.clients import Clients
from stack.cluster.job_health.job_state import JobState
from stack.cluster.job_health.problem import Problem
from stack.cluster.job_health.repair import replacements, retry_failed, with_mark
from stack.cluster.mesh.certificate_authority import CertificateAuthority
from stack.cluster.planned_changes import Change
from stack.cluster.rollout import Rollout
from stack.config import ROOT, Stack
from stack.console import StackError
from stack.machine.ports import require_free
from stack.waiting import wait_until

JOBS = ROOT / "nomad" / "jobs"
SHARED = "service"
EDGE = ROOT / "nomad" / "edge"
# Every other job needs these: they start first and stop last.
FOUNDATION = ("artifacts", "telemetry", "postgres")
FRONT = ("gateway", "edge")
# The ports that a job must have, and what the edge needs as well in the mesh; all others are Nomad's choice.
PORTS = {
    "artifacts": ("artifacts",),
    "telemetry": ("telemetry", "otlp_grpc", "otlp_http"),
    "postgres": ("postgres",),
    "edge": ("gateway",),
}
MESH_PORTS = {"edge": ("gateway_https",)}


def names() -> list[str]:
    """Returns every job that has a file, in the order in which they start."""
    return [name for stage in stages() for name in stage]


def deployable(found: Tools) -> list[str]:
    """Returns the jobs that these tools can run: all but telemetry, if its server was left out."""
    return [name for name in names() if name != "telemetry" or found.telemetry]


def stages() -> list[list[str]]:
    """Returns every job that has a file, in groups that start one after the other."""
    found = {file.name.partition(".")[0] for file in JOBS.glob("*.hcl")} - {SHARED}
    services = sorted(found - {*FOUNDATION, *FRONT}, reverse=True)
    return [list(FOUNDATION), services, *([name] for name in FRONT)]


def job_files(name: str) -> list[Path]:
    """Returns the file of a job; for a service the shared file, and the file with its own variables."""
    own = JOBS / f"{name}.vars.hcl"
    return [JOBS / f"{SHARED}.nomad.hcl", own] if own.exists() else [JOBS / f"{name}.nomad.hcl"]


def is_in_mesh(service: str) -> bool:
    """Returns whether the file of a service puts it into the mesh."""
    return re.search(r"^mesh\s*=\s*true\b", job_files(service)[-1].read_text(), re.MULTILINE) is not None


class Nomad:
    """Compares the running jobs with the files and yields the differences as changes."""

    def __init__(self, stack: Stack, clients: Clients, tools: Tools, artifacts: dict[str, Artifact]) -> None:
        self.stack, self.api, self._clients = stack, clients.nomad, clients
        self._tools, self._artifacts = tools, artifacts
        self._registered: dict[str, int] = {}

    def bootstrap(self, token: str) -> None:
        """Makes the management token valid, unless it is valid already."""
        try:
            self.api.acl.request("bootstrap", json={"BootstrapSecret": token}, method="post")
        except BaseNomadException as error:
            if "already done" not in str(getattr(error.nomad_resp, "text", error)):  # fragile: nomad-error-text
                raise

    def has_node(self) -> bool:
        """Returns whether the client of this agent is ready; the server also lists nodes of earlier starts."""
        client = self.api.agent.get_agent()["stats"]["client"]
        if client["heartbeat_ttl"] == "0s":
            return False
        return bool(self.api.node.get_node(client["node_id"])["Status"] == "ready")

    def has_work(self) -> bool:
        """Returns whether an allocation should run, also one from before a restart of the agent."""
        return any(map(_should_run, self.api.allocations.get_allocations()))

    def change(self, name: str) -> Iterator[Change]:
        """Yields the change that registers a job, if it differs from its file."""
        job = with_mark(self._clients, self.parse(name))
        plan = self.api.job.plan_job(name, {"Job": job, "Diff": True})
        if plan["Diff"]["Type"] != "None":
            before, after = "\n".join(_old(plan["Diff"])), "\n".join(_new(plan["Diff"]))
            yield Change(f"nomad job {name}", before, after, lambda: self.register(name, job))

    def register(self, name: str, job: dict[str, Any]) -> None:
        """Registers a new version of a job; `wait_healthy` waits for exactly this version."""
        self._registered[name] = self.api.job.register_job(name, {"Job": job})["JobModifyIndex"]

    def require_ports(self, name: str) -> None:
        """Raises StackError if a port that a job needs and does not hold yet is taken; Nomad itself would only wait."""
        wanted = PORTS.get(name, ()) + (MESH_PORTS.get(name, ()) if is_in_mesh("gateway") else ())
        held = set(self._held_ports(name)) if wanted else set()
        for port in wanted:
            if self.stack.port(port) not in held:
                require_free(self.stack.port(port), port)

    def _held_ports(self, name: str) -> Iterator[int]:
        for listed in filter(_should_run, self.api.job.get_allocations(name)):
            allocation = self.api.allocation.get_allocation(listed["ID"])
            yield from (port["Value"] for port in allocation["AllocatedResources"]["Shared"]["Ports"] or ())

    def parse(self, name: str) -> dict[str, Any]:
        """Returns the job as Nomad reads it; raises StackError if its file is wrong or lacks a variable."""
        files = job_files(name)
        text, *given = [file.read_text() for file in files]
        try:
            payload = {"JobHCL": text, "Variables": self._variable_file(name, text, given), "Canonicalize": True}
            job: dict[str, Any] = self.api.jobs.request("parse", json=payload, method="post").json()
        except BadRequestNomadException as error:
            read = " with ".join(f"nomad/jobs/{file.name}" for file in files)
            raise StackError(f"Nomad rejects {read}", error.nomad_resp.text, "correct the file") from error
        return job

    def _variable_file(self, name: str, text: str, given: list[str]) -> str:
        """Returns the values `given` by the file of the job, and a value of this stack for each other variable."""
        values, in_file = self._variables(name), set(re.findall(r"^(\w+)\s*=", "".join(given), re.MULTILINE))
        declared = re.findall(r'^variable "(\w+)"', text, re.MULTILINE)
        missing = [variable for variable in declared if variable not in values.keys() | in_file]
        if missing:
            raise StackError(
                f"job {name} needs {', '.join(missing)}",
                "no code sets that variable",
                "see stack/stack/cluster/nomad.py",
            )
        from_stack = [variable for variable in declared if variable not in in_file]
        return "".join([*(f"{variable} = {_hcl(values[variable])}\n" for variable in from_stack), *given])

    def _variables(self, name: str) -> dict[str, str | int]:
        stack, tools = self.stack, self._tools
        values: dict[str, str | int] = {
            "python": sys.executable if name == "artifacts" else _plain_python(),
            "consul_url": stack.url("consul"),
            "vault_url": stack.url("vault"),
            "otlp_grpc_url": stack.url("otlp_grpc"),
            "zipapp_cache": str(stack.state / "zipapps"),
            "artifacts_dir": str(stack.artifacts),
            "artifacts_port": stack.port("artifacts"),
            "telemetry_bin": str(tools.telemetry),
            "telemetry_port": stack.port("telemetry"),
            "otlp_grpc_port": stack.port("otlp_grpc"),
            "otlp_http_port": stack.port("otlp_http"),
            "postgres_bin": str(tools.postgres_bin),
            "postgres_dir": str(stack.state / "postgres"),
            "postgres_port": stack.port("postgres"),
            "databases": " ".join(
                sorted(f"{folder.name}_service" for folder in (ROOT / "services").iterdir() if folder.is_dir())
            ),
        }
        if name == "edge":
            values |= self._edge_variables()
        artifact = self._artifacts.get(name)
        if artifact:
            values["artifact_url"] = f"{stack.url('artifacts')}/{artifact.path.name}"
            values["artifact_sha256"] = artifact.sha256
            values["version"] = artifact.version
        return values

    def _edge_variables(self) -> dict[str, str | int]:
        stack, mesh = self.stack, is_in_mesh("gateway")  # the edge follows the gateway
        return {
            "gateway_port": stack.port("gateway"),
            "gateway_https_port": stack.port("gateway_https"),
            "mesh": mesh,
            "trust_domain": CertificateAuthority(stack, self._clients).trust_domain() if mesh else "",
            "envoy_bin": str(self._tools.envoy),
            "envoy_config": (EDGE / "envoy.yaml").read_text(),
            "envoy_instances": (EDGE / "gateway.json").read_text(),
            "envoy_leaf": (EDGE / "leaf.json").read_text(),
            "envoy_roots": (EDGE / "roots.json").read_text(),
            "drained_envoy": (EDGE / "drained_envoy.py").read_text(),
        }

    def artifact_files(self) -> set[str]:
        """Returns the zipapps of every version that Nomad keeps: it may restart any of them, or roll back to it."""
        known = [self.api.job.get_versions(name)["Versions"] for name in self._artifacts]
        groups = [group for versions in known for version in versions for group in version["TaskGroups"]]
        artifacts = [artifact for group in groups for task in group["Tasks"] for artifact in task["Artifacts"] or []]
        return {artifact["GetterSource"].rpartition("/")[2] for artifact in artifacts}

    def replacements(self, name: str) -> Iterator[Change]:
        """Yields a change for each running allocation that Nomad must replace, because Consul forgot its token."""
        return replacements(self.stack, self._clients, name)

    def retry_failed(self, name: str) -> bool:
        """Registers a version that never became healthy again, if this deploy did not register it; returns whether."""
        index = retry_failed(self.stack, self._clients, name) if name not in self._registered else None
        if index is not None:
            self._registered[name] = index
        return index is not None

    def problems(self, name: str) -> list[Problem]:
        """Returns why a registered job does not run completely."""
        return JobState(self.stack, self._clients, name).current_problems() if name in self.api.job else []

    def wait_healthy(self, name: str, seconds: float = 180, report: Callable[[str], None] = lambda _: None) -> None:
        """Returns once the registered version runs alone and passes its checks; raises StackError with the causes."""
        Rollout(self.stack, self._clients, name, self._registered.get(name), report=report).wait(seconds)


def stop(clients: Clients, name: str, seconds: float = 60) -> None:
    """Stops a job and waits for its last task to end: an agent that stops earlier would leave it running."""
    job = clients.nomad.job
    try:
        job.deregister_job(name)
    except URLNotFoundNomadException:
        return
    failure = StackError(f"job {name} did not stop", f"waited {seconds:.0f} s", f"./justw logs {name}")
    wait_until(lambda: not any(map(_is_alive, job.get_allocations(name))), seconds, lambda: failure, interval=0.2)


def _should_run(allocation: dict[str, Any]) -> bool:
    """Also true for an allocation that Nomad is starting again, for example after a loss of power."""
    return allocation["DesiredStatus"] == "run" and allocation["ClientStatus"] in {"pending", "running"}


def _is_alive(allocation: dict[str, Any]) -> bool:
    return allocation["ClientStatus"] in {"running", "pending"}


def _plain_python() -> str:
    """Returns the interpreter below this virtual environment: a zipapp contains everything else."""
    return str(Path(sys.executable).resolve())


def _hcl(value: str | int) -> str:
    if isinstance(value, int):
        return json.dumps(value)
    # A JSON string is also an HCL string, except for the templates of HCL.
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def _fields(diff: dict[str, Any], side: str, path: str = "") -> Iterator[str]:
    for field in diff.get("Fields") or []:
        if field["Type"] != "None":
            yield f"{path}{field['Name']} = {field[side]}"
    for part in ("Objects", "TaskGroups", "Tasks"):
        for child in diff.get(part) or []:
            if child["Type"] != "None":
                yield from _fields(child, side, f"{path}{child['Name']}.")


def _old(diff: dict[str, Any]) -> list[str]:
    return list(_fields(diff, "Old")) if diff["Type"] != "Added" else []


def _new(diff: dict[str, Any]) -> list[str]:
    return list(_fields(diff, "New"))
