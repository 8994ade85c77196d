"""A job file and the program it starts agree: on the environment, on variables, on how identity comes in."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chassis.process import FLUSH_SECONDS
from chassis.settings import Environment
from gateway.http.problems import KINDS
from stack.build.tools import Tools
from stack.build.zipapps import Artifact
from stack.cluster import nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError

from ..checkout import ROOT, SERVICES, blocks, job_file, keys

ENVIRONMENT = {name.upper() for name in Environment.model_fields}
# Where the zipapp unpacks itself, and how malloc gives back: both are read before any code of ours runs.
BEFORE_OUR_CODE = {"SHIV_ROOT", "MALLOC_MMAP_THRESHOLD_"}
FILES = sorted(path.name.removesuffix(".nomad.hcl") for path in nomad.JOBS.glob("*.nomad.hcl"))


@pytest.fixture
def sent() -> list[str]:
    """What was sent to Nomad as variables."""
    return []


@pytest.fixture
def server(sent: list[str]) -> nomad.Nomad:
    """The part of the stack that fills the variables of a job, before a Nomad that takes everything."""

    def request(_path: str, json: Any, **_: Any) -> Any:
        sent.append(json["Variables"])
        return SimpleNamespace(json=dict)

    api = SimpleNamespace(jobs=SimpleNamespace(request=request))
    clients = cast(Clients, SimpleNamespace(nomad=api))
    tool = Path("/tool")
    tools = Tools(tool, tool, tool, tool, tool, tool, tool, tool, exec_driver=True)
    artifacts = {name: Artifact(name, Path("/built.pyz"), "0" * 64) for name in SERVICES}
    return nomad.Nomad(Stack("dev", 0), clients, tools, artifacts)


def test_every_job_file_is_deployed_and_every_deployed_job_has_a_file() -> None:
    assert sorted(nomad.names()) == FILES


@pytest.mark.parametrize("service", SERVICES)
def test_a_job_sets_exactly_the_environment_that_its_service_reads(service: str) -> None:
    found = [keys(body) for _, body in blocks(job_file(service).read_text(), "env")]
    assert found
    for names in found:
        assert names == ENVIRONMENT | BEFORE_OUR_CODE


def test_no_variable_of_the_environment_has_a_default() -> None:
    assert [name for name, field in Environment.model_fields.items() if not field.is_required()] == []


@pytest.mark.parametrize("job", FILES)
def test_every_variable_of_a_job_is_supplied(job: str, server: nomad.Nomad, sent: list[str]) -> None:
    declared = [labels[0] for labels, _ in blocks(job_file(job).read_text(), r'variable "(\w+)"')]
    server.parse(job)
    assert declared
    assert set(declared) == keys(sent[0])


@pytest.mark.parametrize("job", FILES)
def test_a_job_uses_the_variables_it_declares_and_no_other(job: str) -> None:
    text = job_file(job).read_text()
    declared = {labels[0] for labels, _ in blocks(text, r'variable "(\w+)"')}
    assert declared == set(re.findall(r"\bvar\.(\w+)", text))


def test_a_variable_that_nothing_supplies_is_refused_by_name(
    server: nomad.Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.nomad.hcl").write_text('variable "surprise" { type = string }\n')
    monkeypatch.setattr(nomad, "JOBS", tmp_path)
    with pytest.raises(StackError, match="surprise"):
        server.parse("odd")


def test_the_edge_gets_its_identity_as_a_file_and_no_token_from_nomad() -> None:
    text = job_file("edge").read_text()
    assert [
        re.search(r"^\s*file\s*=\s*true", body, re.MULTILINE) is not None for _, body in blocks(text, "identity")
    ] == [True]
    assert [head for head in ("consul", "vault", "env") for _ in blocks(text, head)] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_its_identities_as_files_and_never_as_variables(service: str) -> None:
    found = [body for _, body in blocks(job_file(service).read_text(), "identity")]
    assert len(found) == 2
    for body in found:
        assert re.search(r"^\s*file\s*=\s*true", body, re.MULTILINE)
        assert "env" not in keys(body)


@pytest.mark.parametrize("service", SERVICES)
def test_no_token_of_a_service_is_fetched_by_nomad_which_would_put_it_into_the_environment(service: str) -> None:
    text = job_file(service).read_text()
    assert [head for head in ("consul", "vault", "template") for _ in blocks(text, head)] == []


@pytest.mark.parametrize("job", FILES)
def test_a_vault_token_that_nomad_fetches_stays_out_of_the_environment(job: str) -> None:
    for _, body in blocks(job_file(job).read_text(), "vault"):
        assert re.search(r"^\s*env\s*=\s*false", body, re.MULTILINE)


@pytest.mark.parametrize("job", FILES)
def test_a_task_whose_logs_nomad_does_not_collect_writes_them_itself(job: str) -> None:
    found = [body for _, body in blocks(job_file(job).read_text(), r'task "([\w-]+)"')]
    assert found
    for body in found:
        uncollected = any("disabled = true" in logs for _, logs in blocks(body, "logs"))
        assert uncollected == ("var.run_logged" in body)


@pytest.mark.parametrize("job", FILES)
def test_every_service_of_a_job_has_a_check_in_consul(job: str) -> None:
    found = [body for _, body in blocks(job_file(job).read_text(), "service")]
    assert found
    for body in found:
        assert list(blocks(body, "check"))
        assert re.search(r'^\s*provider\s*=\s*"consul"', body, re.MULTILINE)


def written(job: str, setting: str) -> str:
    found = set(re.findall(rf'\b{setting}\s*[=:]\s*"?(\w+)"?', job_file(job).read_text()))
    assert len(found) == 1, f"{setting} of {job}: {found}"
    return found.pop()


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def setting(service: str, name: str) -> float:
    return float(json.loads((ROOT / "consul" / "kv" / "config" / f"{service}.json").read_text())[name])


@pytest.mark.parametrize("head", ["update", "migrate", "reschedule", "restart", "check_restart"])
def test_what_is_explained_once_is_set_the_same_in_every_service(head: str) -> None:
    found = {service: list(blocks(job_file(service).read_text(), head)) for service in SERVICES}
    assert all(found.values())
    assert len({re.sub(r"\s+", " ", body) for bodies in found.values() for _, body in bodies}) == 1


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_drains_as_long_as_it_may_is_not_killed(service: str) -> None:
    longest = setting(service, "drain_seconds") + setting(service, "grace_seconds") + 3 * FLUSH_SECONDS
    assert seconds(written(service, "kill_timeout")) > longest


def test_the_edge_gives_up_an_idle_connection_before_the_gateway_does() -> None:
    assert seconds(written("edge", "idleConnTimeout")) < setting("gateway", "keep_alive_seconds") / 1.5


def test_the_edge_refuses_in_the_words_of_the_gateway() -> None:
    said = runpy.run_path(str(ROOT / "nomad" / "sidecars" / "edge" / "error_pages.py"))["KINDS"]
    known = {(kind.status, kind.name, kind.title, kind.meaning) for kind in KINDS.values()}
    assert set(said) == {502, 503}
    assert {(status, *words) for status, words in said.items()} <= known


def test_the_edge_replaces_no_answer_of_a_gateway() -> None:
    (middlewares,) = re.findall(r"middlewares=([^\"]+)", job_file("gateway").read_text())
    text = job_file("edge").read_text()
    replaced = {
        status
        for name in middlewares.replace("@file", "").split(",")
        for found in re.findall(rf"^ *{name}:\n *errors: {{ status: \[([^]]*)\]", text, re.MULTILINE)
        for status in re.findall(r"\d+", found)
    }
    assert replaced == {"502"}
    # A kind of this status is there for the edge: nothing a service or the gateway itself does ends with it.
    assert [kind.reason for kind in KINDS.values() if str(kind.status) in replaced] == ["ANSWER_LOST"]


def test_the_edge_waits_for_an_answer_longer_than_the_gateway_may_take() -> None:
    assert seconds(written("edge", "responseHeaderTimeout")) > setting("gateway", "response_seconds")


def test_the_edge_shows_what_is_marked_for_it_and_only_the_gateway_is() -> None:
    assert written("edge", "exposedByDefault") == "false"
    assert [job for job in FILES if "traefik.enable=true" in job_file(job).read_text()] == ["gateway"]


def test_the_edge_believes_no_caller_about_earlier_hops_and_has_no_dashboard() -> None:
    text = job_file("edge").read_text()
    assert not re.search(r"trustedIPs|insecure|dashboard:|^\s*api:", text, re.MULTILINE)
