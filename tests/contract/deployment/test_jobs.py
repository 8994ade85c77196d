"""A job file and the program that it starts agree on variables, environment and identities."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chassis.settings import Environment
from stack.build import tools
from stack.build.zipapps import Artifact
from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.cluster.mesh.certificate_authority import CertificateAuthority
from stack.config import Stack
from stack.console import StackError

from ..repository import SERVICES, blocks, job_text, keys

# The agents of a stack are on loopback, without https.
OF_HTTPS = {"CONSUL_CACERT", "VAULT_CACERT"}
ENVIRONMENT = {name.upper() for name in Environment.model_fields} - OF_HTTPS
# The zipapp unpacks itself into this folder before any code of ours runs.
READ_BY_SHIV = {"SHIV_ROOT"}
Read = Callable[..., dict[str, Any]]
JOBS = nomad.names()


@pytest.fixture
def sent() -> list[str]:
    """The variables that were sent to Nomad."""
    return []


DOMAIN = "the-domain.consul"


@pytest.fixture
def server(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> nomad.Nomad:
    """The code of the stack that fills the variables of a job, with a Nomad that accepts everything."""
    monkeypatch.setattr(CertificateAuthority, "trust_domain", lambda _: DOMAIN)

    def request(_path: str, json: Any, **_: Any) -> Any:
        sent.append(json["Variables"])
        return SimpleNamespace(json=dict)

    api = SimpleNamespace(jobs=SimpleNamespace(request=request))
    consul = SimpleNamespace(connect=SimpleNamespace(certificates=None))
    clients = cast(Clients, SimpleNamespace(nomad=api, consul=consul, vault=None, credentials=None))
    tool = Path("/tool")
    found = tools.Tools(tool, tool, tool, tool, tool, tool, tool, exec_driver=True)
    artifacts = {name: Artifact(name, Path("/built.pyz"), "0" * 64) for name in SERVICES}
    return nomad.Nomad(Stack("dev", 0), clients, found, artifacts)


def test_every_job_file_is_deployed() -> None:
    used = {file for job in JOBS for file in nomad.job_files(job)}
    assert used == {file for file in nomad.JOBS.iterdir() if file.is_file()}


def test_the_services_share_one_job_file() -> None:
    assert {nomad.job_files(service)[0].name for service in SERVICES} == {f"{nomad.SHARED}.nomad.hcl"}


@pytest.fixture
def read_by_nomad(server: nomad.Nomad, sent: list[str], tmp_path: Path) -> Read:
    """Reads a job file with the program of Nomad, without a server; inside or outside of the mesh."""
    program = tools.find("nomad")
    if program is None:
        pytest.skip("nomad is not built yet")

    def read(job: str, mesh: bool = False) -> dict[str, Any]:
        server.parse(job)
        values = tmp_path / "values.hcl"
        values.write_text(re.sub(r"^mesh\b.*", f"mesh = {str(mesh).lower()}", sent[-1], flags=re.MULTILINE))
        command = [program, "job", "run", "-output", f"-var-file={values}", nomad.job_files(job)[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["Job"]
        return found

    return read


@pytest.mark.parametrize("job", JOBS)
def test_nomad_reads_a_job_under_the_name_of_its_file(job: str, read_by_nomad: Read) -> None:
    read = read_by_nomad(job)
    assert (read["ID"], read["Name"]) == (job, job)
    assert job in [service["Name"] for group in read["TaskGroups"] for service in group["Services"]]
    assert job in [task["Name"] for group in read["TaskGroups"] for task in group["Tasks"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_job_sets_exactly_the_environment_that_its_service_reads(service: str) -> None:
    found = [keys(body) for _, body in blocks(job_text(service), "env")]
    assert found == [ENVIRONMENT | READ_BY_SHIV]


def test_the_checks_of_a_service_in_the_mesh_use_a_port_of_their_own_by_tls(read_by_nomad: Read) -> None:
    """Consul has no certificate of the mesh, which the port of the calls asks for."""
    for service in SERVICES:
        kind = "http" if service == "gateway" else "grpc"
        for group in read_by_nomad(service, mesh=True)["TaskGroups"]:
            assert ports(group) == {kind, "health"}
            (registered,) = group["Services"]
            assert registered["PortLabel"] == kind
            for check in registered["Checks"]:
                assert (check["Type"], check["PortLabel"], check["TLSSkipVerify"]) == (kind, "health", True)
                assert (check["GRPCUseTLS"], check["Protocol"]) == ((True, "") if kind == "grpc" else (False, "https"))
            (env,) = [task["Env"] for task in group["Tasks"]]
            assert (env["MESH"], env["HEALTH_ADDRESS"]) == ("on", "${NOMAD_ADDR_health}")


def test_outside_of_the_mesh_one_port_is_for_calls_and_checks(read_by_nomad: Read) -> None:
    for service in SERVICES:
        for group in read_by_nomad(service)["TaskGroups"]:
            (port,) = ports(group)
            checks = group["Services"][0]["Checks"]
            found = {(check["PortLabel"], check["GRPCUseTLS"], check["Protocol"]) for check in checks}
            assert found == {(port, False, "")}
            (env,) = [task["Env"] for task in group["Tasks"]]
            assert (env["MESH"], env["HEALTH_ADDRESS"]) == ("off", f"${{NOMAD_ADDR_{port}}}")


def test_the_edge_has_https_and_a_certificate_in_the_mesh_only(read_by_nomad: Read) -> None:
    for mesh in (True, False):
        (group,) = read_by_nomad("edge", mesh=mesh)["TaskGroups"]
        (task,) = group["Tasks"]
        fixed = {port["Label"]: port["Value"] for network in group["Networks"] for port in network["ReservedPorts"]}
        written = {template["DestPath"]: template for template in task["Templates"]}
        secrets = {path for path in written if path.startswith("secrets/")}
        if mesh:
            assert fixed == {"http": 8080, "https": 8443}
            assert secrets == {"secrets/mesh/leaf.json", "secrets/mesh/roots.json"}
            assert {written[path]["Perms"] for path in secrets} == {"600"}
            assert {written[path]["ChangeMode"] for path in secrets} == {"noop"}
            assert (task["Vault"]["Role"], task["Vault"]["ChangeMode"]) == ("edge", "noop")
            assert (task["Vault"]["Env"], task["Vault"]["DisableFile"]) == (False, True)
        else:
            assert (fixed, secrets, task["Vault"]) == ({"http": 8080}, set(), None)
        assert task["Meta"]["mesh"] == ("on" if mesh else "off")
        assert not task["Env"]


def test_the_edge_is_in_the_mesh_if_the_gateway_is(
    server: nomad.Nomad, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mesh, domain in ((True, DOMAIN), (False, "")):
        monkeypatch.setattr(nomad, "is_in_mesh", lambda service, mesh=mesh: service == "gateway" and mesh)
        server.parse("edge")
        assert f'mesh = {str(mesh).lower()}\ntrust_domain = "{domain}"\n' in sent[-1]


@pytest.mark.parametrize("service", SERVICES)
def test_an_instance_is_registered_with_its_version_and_as_a_canary_while_it_is_one(
    service: str, read_by_nomad: Read
) -> None:
    """The subsets of traffic rules name them."""
    for group in read_by_nomad(service)["TaskGroups"]:
        (registered,) = group["Services"]
        (env,) = [task["Env"] for task in group["Tasks"]]
        assert registered["Meta"] == {"version": env["VERSION"]}
        assert registered["CanaryMeta"] == {"version": env["VERSION"], "canary": "true"}
        assert f"version={env['VERSION']}" in registered["Tags"]


def test_either_all_services_are_in_the_mesh_or_none(read_by_nomad: Read) -> None:
    tasks = [task for name in SERVICES for group in read_by_nomad(name)["TaskGroups"] for task in group["Tasks"]]
    assert len({task["Env"]["MESH"] for task in tasks}) == 1
    files = [re.findall(r"^mesh\s*=\s*(\w+)", nomad.job_files(name)[-1].read_text(), re.MULTILINE) for name in SERVICES]
    assert files in ([["false"]] * len(SERVICES), [["true"]] * len(SERVICES))


def ports(group: dict[str, Any]) -> set[str]:
    """The labels of the ports of a task group."""
    return {port["Label"] for network in group["Networks"] for port in network["DynamicPorts"]}


def declared(job: str) -> set[str]:
    return {labels[0] for labels, _ in blocks(job_text(job), r'variable "(\w+)"')}


@pytest.mark.parametrize("job", JOBS)
def test_every_variable_of_a_job_gets_one_value(job: str, server: nomad.Nomad, sent: list[str]) -> None:
    server.parse(job)
    given = re.findall(r"^(\w+)\s*=", sent[0], re.MULTILINE)
    assert given
    assert sorted(given) == sorted(declared(job))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_uses_each_variable_that_it_declares(job: str) -> None:
    assert declared(job) == set(re.findall(r"\bvar\.(\w+)", job_text(job)))


def test_a_variable_without_a_value_is_refused_by_name(
    server: nomad.Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.nomad.hcl").write_text('variable "surprise" { type = string }\n')
    monkeypatch.setattr(nomad, "JOBS", tmp_path)
    with pytest.raises(StackError, match="surprise"):
        server.parse("odd")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_its_identities_as_files_and_never_as_variables(service: str) -> None:
    found = [body for _, body in blocks(job_text(service), "identity")]
    assert len(found) == 2
    for body in found:
        assert re.search(r"^\s*file\s*=\s*true", body, re.MULTILINE)
        assert "env" not in keys(body)


@pytest.mark.parametrize("service", SERVICES)
def test_a_program_starts_without_the_token_that_nomad_gives_to_a_native_service(
    service: str, read_by_nomad: Read
) -> None:
    tasks = [task for group in read_by_nomad(service, mesh=True)["TaskGroups"] for task in group["Tasks"]]
    started = [(task["Config"]["command"], *task["Config"]["args"]) for task in tasks]
    started += [(each["Command"], *each["Args"]) for task in tasks for each in task["Actions"] or ()]
    assert {command[:3] for command in started} == {("/usr/bin/env", "-u", "CONSUL_HTTP_TOKEN")}


def test_services_that_are_called_are_native_in_the_mesh_of_consul_and_outside_of_it_none_is(
    read_by_nomad: Read,
) -> None:
    for mesh, native in ((True, set(SERVICES)), (False, set())):
        groups = [group for name in SERVICES for group in read_by_nomad(name, mesh)["TaskGroups"]]
        found = {each["Name"]: each["Connect"] for group in groups for each in group["Services"] if each["Connect"]}
        assert found.keys() == native
        assert all(each["Native"] and not each["SidecarService"] for each in found.values())


@pytest.mark.parametrize("service", SERVICES)
def test_nomad_fetches_no_token_for_a_service_because_it_would_put_it_into_the_environment(service: str) -> None:
    text = job_text(service)
    assert [head for head in ("consul", "vault", "template") for _ in blocks(text, head)] == []


@pytest.mark.parametrize("job", JOBS)
def test_a_vault_token_that_nomad_fetches_stays_out_of_the_environment(job: str) -> None:
    for _, body in blocks(job_text(job), "vault"):
        assert re.search(r"^\s*env\s*=\s*false", body, re.MULTILINE)
