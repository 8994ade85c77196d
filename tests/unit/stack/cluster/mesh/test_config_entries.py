"""Config entries of Consul follow their files in HCL: compared with what Consul returns, applied, and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from consul import ConsulException

from stack.cluster.mesh import config_entries
from stack.cluster.mesh.config_entries import ConfigEntries, read
from stack.cluster.planned_changes import Change, apply_all
from stack.console import StackError

DEFAULTS = """# The protocol.
Kind     = "service-defaults"
Name     = "shop" # also of the file
Protocol = "grpc"
"""
INTENTIONS = """
Kind = "service-intentions"
Name = "shop"
Sources = [
  # One method.
  {
    Name        = "till"
    Permissions = [
      { Action = "allow", HTTP = { PathExact = "/shop.v1.Shop/Sell" } },
    ]
  },
  { Name = "operator", Action = "allow" },
]
"""


class Api:
    """Config entries of a Consul, which adds fields of its own and may return the sources in another order."""

    def __init__(self) -> None:
        self.config = self
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[str] = []

    def list(self, kind: str) -> list[dict[str, Any]]:
        return [entry for (found, _), entry in self.entries.items() if found == kind]

    def put(self, entry: dict[str, Any]) -> bool:
        self.calls.append(f"put {entry['Kind']}/{entry['Name']}")
        stored = entry | {"CreateIndex": 7, "ModifyIndex": 9, "Hash": 12, "TransparentProxy": {}, "Meta": None}
        if "Sources" in entry:
            stored["Sources"] = [
                source | {"Type": "consul", "Precedence": 9, "Description": ""} for source in reversed(entry["Sources"])
            ]
        self.entries[entry["Kind"], entry["Name"]] = stored
        return True

    def delete(self, kind: str, name: str) -> bool:
        self.calls.append(f"delete {kind}/{name}")
        del self.entries[kind, name]
        return True


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config_entries, "FILES", tmp_path)
    for folder in ("config/service-defaults", "intentions"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config/service-defaults/shop.hcl").write_text(DEFAULTS)
    (tmp_path / "intentions/shop.hcl").write_text(INTENTIONS)
    return tmp_path


def planned(api: Api) -> list[Change]:
    return list(ConfigEntries(api).changes())


def test_defaults_are_written_before_the_intentions_that_need_their_protocol(files: Path) -> None:
    api = Api()
    assert apply_all(ConfigEntries(api).changes()) == 2
    assert api.calls == ["put service-defaults/shop", "put service-intentions/shop"]
    assert api.entries["service-defaults", "shop"]["Protocol"] == "grpc"


def write(files: Path, kind: str, fields: str) -> Path:
    """Writes a traffic rule of the service, or removes it if there are no fields."""
    file = files / "config" / kind / "shop.hcl"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'Kind = "{kind}"\nName = "shop"\n{fields}\n')
    return file


SUBSETS = 'Subsets = { old = { Filter = "Service.Meta.version == \\"1\\"" }, new = {} }'
SPLITS = 'Splits = [{ Weight = 90, ServiceSubset = "old" }, { Weight = 10, ServiceSubset = "new" }]'


def test_subsets_are_written_before_and_removed_after_what_refers_to_them(files: Path) -> None:
    api = Api()
    write(files, "service-resolver", SUBSETS)
    splitter = write(files, "service-splitter", SPLITS)
    router = write(files, "service-router", 'Routes = [{ Destination = { ServiceSubset = "old" } }]')
    apply_all(ConfigEntries(api).changes())
    kinds = ["service-defaults", "service-resolver", "service-splitter", "service-router", "service-intentions"]
    assert api.calls == [f"put {kind}/shop" for kind in kinds]
    assert planned(api) == []
    api.calls.clear()
    write(files, "service-resolver", "Subsets = { new = {} }")
    router.unlink()
    splitter.unlink()
    apply_all(ConfigEntries(api).changes())
    assert api.calls == ["delete service-router/shop", "delete service-splitter/shop", "put service-resolver/shop"]


def test_a_splitter_and_its_subset_are_changed_in_one_run(files: Path) -> None:
    api = Api()
    write(files, "service-resolver", SUBSETS)
    write(files, "service-splitter", SPLITS)
    apply_all(ConfigEntries(api).changes())
    api.calls.clear()
    write(files, "service-resolver", "Subsets = { new = {} }")
    write(files, "service-splitter", 'Splits = [{ Weight = 100, ServiceSubset = "new" }]')
    apply_all(ConfigEntries(api).changes())
    assert api.calls == ["put service-splitter/shop", "put service-resolver/shop"]


@pytest.mark.parametrize(
    ("kind", "written", "returned"),
    [
        ("service-resolver", 'RequestTimeout = "90s"', {"RequestTimeout": "1m30s"}),
        ("service-splitter", "Splits = [{ Weight = 100.0 }]", {"Splits": [{"Weight": 100}]}),
        ("service-router", 'Routes = [{ Destination = { RequestTimeout = "500ms" } }]',
         {"Routes": [{"Destination": {"RequestTimeout": "0.5s"}}]}),
    ],
)  # fmt: skip
def test_the_spelling_of_consul_is_no_change(files: Path, kind: str, written: str, returned: dict[str, Any]) -> None:
    api = Api()
    write(files, kind, written)
    apply_all(ConfigEntries(api).changes())
    api.entries[kind, "shop"] |= returned
    assert planned(api) == []


def test_a_timeout_that_is_none_is_an_error_that_names_the_file(files: Path) -> None:
    write(files, "service-resolver", 'RequestTimeout = "2 seconds"')
    with pytest.raises(StackError, match=r"service-resolver/shop\.hcl is not valid.*'2 seconds'"):
        planned(Api())


def test_a_second_run_changes_nothing(files: Path) -> None:
    api = Api()
    apply_all(ConfigEntries(api).changes())
    assert planned(api) == []


def test_a_plan_shows_the_changed_lines_alone(files: Path) -> None:
    api = Api()
    apply_all(ConfigEntries(api).changes())
    (files / "intentions/shop.hcl").write_text(INTENTIONS.replace("Shop/Sell", "Shop/Price"))
    (change,) = planned(api)
    assert (change.where, change.action) == ("consul service-intentions shop", "change")
    marked = [line.split() for line in change.diff().splitlines() if line.strip().startswith(("-", "+"))]
    assert marked == [["-", '"PathExact":', '"/shop.v1.Shop/Sell"'], ["+", '"PathExact":', '"/shop.v1.Shop/Price"']]


@pytest.mark.parametrize(
    "by_hand",
    [
        {"Sources": [{"Name": "*", "Action": "allow", "Type": "consul"}]},
        {"Sources": [{"Name": "till", "Action": "allow", "Type": "consul"}]},
        {"Meta": {"note": "by hand"}},
        {"JWT": {"Providers": [{"Name": "any"}]}},
    ],
)
def test_what_was_changed_by_hand_is_reverted(files: Path, by_hand: dict[str, Any]) -> None:
    api = Api()
    apply_all(ConfigEntries(api).changes())
    api.entries["service-intentions", "shop"] |= by_hand
    assert [change.where for change in planned(api)] == ["consul service-intentions shop"]
    apply_all(planned(api))
    assert planned(api) == []


def test_an_entry_without_a_file_is_removed_intentions_first_and_other_kinds_stay(files: Path) -> None:
    api = Api()
    apply_all(ConfigEntries(api).changes())
    api.entries["proxy-defaults", "global"] = {"Kind": "proxy-defaults", "Name": "global"}
    for file in files.rglob("*.hcl"):
        file.unlink()
    api.calls.clear()
    assert [(change.action, change.where) for change in planned(api)] == [
        ("remove", "consul service-intentions shop"),
        ("remove", "consul service-defaults shop"),
    ]
    apply_all(planned(api))
    assert api.calls == ["delete service-intentions/shop", "delete service-defaults/shop"]
    assert list(api.entries) == [("proxy-defaults", "global")]


def test_values_have_the_types_of_json(files: Path) -> None:
    file = files / "intentions/shop.hcl"
    numbers = "Count = 5\nShare = 0.5\nLess = -1\nOn = true\nOff = false\n"
    more = numbers + 'Path = "/a \\"b\\" \\\\ é" # not this\n/* nor\nthis */\n'
    file.write_text(INTENTIONS + more)
    entry = read(file, "service-intentions")
    assert {key: entry[key] for key in ("Count", "Share", "Less", "On", "Off", "Path")} == {
        "Count": 5,
        "Share": 0.5,
        "Less": -1,
        "On": True,
        "Off": False,
        "Path": '/a "b" \\ é',
    }
    assert entry["Sources"][1] == {"Name": "operator", "Action": "allow"}


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        (DEFAULTS + "Sources = [\n", "is not valid HCL", "at line 6"),
        (
            DEFAULTS.replace("service-defaults", "proxy-defaults"),
            "is for another config entry",
            "Kind is 'proxy-defaults'",
        ),
        (DEFAULTS.replace("shop", "ship"), "is for another config entry", "its path says 'shop'"),
        ("# nothing\n", "is for another config entry", "Kind is None"),
        (
            DEFAULTS + "UpstreamConfig { Overrides = [] }\n",
            "is not valid as a config entry",
            "UpstreamConfig is a block",
        ),
        (DEFAULTS + "Mode = { Inner = fast }\n", "is not valid as a config entry", "Inner is an expression: fast"),
        (DEFAULTS + "Limit = [1 + 2]\n", "is not valid as a config entry", "Limit is an expression"),
        (DEFAULTS + 'Host = "${name}"\n', "is not valid as a config entry", "Host is an expression"),
    ],
)
def test_a_file_that_is_not_valid_is_an_error_that_names_it(files: Path, text: str, what: str, why: str) -> None:
    (files / "config/service-defaults/shop.hcl").write_text(text)
    api = Api()
    with pytest.raises(StackError) as caught:
        planned(api)
    assert caught.value.what == f"consul/config/service-defaults/shop.hcl {what}"
    assert why in caught.value.why
    assert api.calls == []


def test_an_entry_that_consul_does_not_accept_is_an_error_that_names_its_file(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise ConsulException('500 unknown protocol "grcp"')

    api = Api()
    monkeypatch.setattr(api, "put", reject)
    with pytest.raises(StackError, match=r"service-defaults/shop\.hcl.*unknown protocol"):
        apply_all(ConfigEntries(api).changes())
