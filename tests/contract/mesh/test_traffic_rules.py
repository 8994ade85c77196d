"""Traffic rules: the files, the examples and the table of the documentation, and the fields that calls follow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chassis.calls.routing.followed_fields import ENTRIES
from stack.cluster.mesh.config_entries import FILES, FOLDERS, read
from stack.console import StackError

from ..repository import ROOT, SERVICES

DOCUMENT = (ROOT / "docs" / "traffic.md").read_text()
EXAMPLES = dict(re.findall(r"```hcl\n# consul/config/([\w/.-]+\.hcl)\n(.*?)```", DOCUMENT, re.DOTALL))
WRITTEN = [file for kind in ENTRIES for file in sorted((FILES / FOLDERS[kind]).glob("*.hcl"))]
RULES = EXAMPLES | {file.relative_to(FILES / "config").as_posix(): file.read_text() for file in WRITTEN}


def leaves(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, inner in fields.items():
        yield from leaves(inner) if inner else [name]


def row(kind: str) -> list[set[str]]:
    """The fields in the row of a kind: those that are followed, those that are not."""
    (line,) = re.findall(rf"^\| `{kind}` \|(.*)\|$", DOCUMENT, re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", cell)) for cell in line.split(" | ")]


def names(value: Any) -> Iterator[str]:
    """The services to which an entry leads."""
    if isinstance(value, dict):
        yield from [value["Service"]] if "Service" in value else []
        for inner in value.values():
            yield from names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner)


@pytest.mark.parametrize("kind", ENTRIES)
def test_the_table_of_the_documentation_has_the_fields_that_calls_follow(kind: str) -> None:
    followed, others = row(kind)
    fields = {name for name in leaves(ENTRIES[kind]) if name not in {"Kind", "Name", "Meta"}}
    assert {"*", *followed} - {"Subsets", "Redirect", "Failover", "Targets"} == {"*", *fields}
    assert followed & others == set()


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("place", ["followed", "not followed"])
def test_a_file_is_refused_by_the_name_of_a_field_that_is_not_followed(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.cluster.mesh.config_entries.FILES", tmp_path)
    file = tmp_path / FOLDERS[kind] / "user-service.hcl"
    file.parent.mkdir(parents=True)
    for field in {"followed": {"Meta"}, "not followed": row(kind)[1]}[place]:
        file.write_text(f'Kind = "{kind}"\nName = "user-service"\n{field} = {{ x = "1" }}\n')
        if place == "followed":
            assert read(file, kind)[field] == {"x": "1"}
            continue
        with pytest.raises(StackError) as caught:
            read(file, kind)
        assert caught.value.what == f"consul/{FOLDERS[kind]}/user-service.hcl has a field without effect"
        assert caught.value.why.startswith(f"{field} is not followed")


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("service-resolver", 'Failover = { "*" = { Datacenters = ["dc2"] } }', "Failover.*.Datacenters"),
        ("service-resolver", 'Redirect = { Datacenter = "dc2" }', "Redirect.Datacenter"),
        (
            "service-splitter",
            "Splits = [{ Weight = 100, RequestHeaders = { Add = { a = 1 } } }]",
            "Splits[0].RequestHeaders",
        ),
        (
            "service-router",
            'Routes = [{}, { Match = { HTTP = { PathRegex = "/.*" } } }]',
            "Routes[1].Match.HTTP.PathRegex",
        ),
        (
            "service-router",
            "Routes = [{ Destination = { RequestMirror = { a = 1 } } }]",
            "Routes[0].Destination.RequestMirror",
        ),
    ],
)
def test_a_field_inside_of_an_entry_is_named_with_its_place(
    kind: str, text: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.cluster.mesh.config_entries.FILES", tmp_path)
    (tmp_path / "user-service.hcl").write_text(f'Kind = "{kind}"\nName = "user-service"\n{text}\n')
    with pytest.raises(StackError) as caught:
        read(tmp_path / "user-service.hcl", kind)
    assert caught.value.why == f"{field} is not followed by calls"


def test_the_documentation_has_an_example_of_each_kind() -> None:
    assert [path.partition("/")[0] for path in EXAMPLES] == list(ENTRIES)


@pytest.mark.parametrize("path", RULES)
def test_a_rule_is_valid_and_leads_to_services_whose_protocol_is_known(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files, and the examples of the documentation."""
    known = {file.stem for file in (FILES / FOLDERS["service-defaults"]).glob("*.hcl")}
    monkeypatch.setattr("stack.cluster.mesh.config_entries.FILES", tmp_path)
    file = tmp_path / Path(path).name
    file.write_text(RULES[path])
    entry = read(file, path.partition("/")[0])
    assert {entry["Name"], *names(entry)} <= known


@pytest.mark.parametrize("caller", SERVICES)
def test_a_caller_may_read_the_rules_and_instances_of_each_service_that_it_calls(caller: str) -> None:
    folder = ROOT / SERVICES[caller]
    called = {
        name
        for path in folder.rglob("*.py")
        for name in re.findall(r'client\.connect\(process, "([\w-]+)"', path.read_text())
    }
    policy = (ROOT / "consul" / "policies" / f"{caller}.hcl").read_text()
    assert called <= set(re.findall(r'^service "([\w-]+)" \{\n\s*policy\s*= "read"', policy, re.MULTILINE))
    assert called or caller == "user-service"
