"""The issuers of the mesh: the newest announced one signs, and no key outlasts its issuer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from stack.cluster.clients import Clients
from stack.cluster.mesh.issuers import Issuers


class Vault:
    """The mount `mesh` of an OpenBao: issuers by the name of their certificate, each with the key `key of NAME`."""

    def __init__(self, *with_key: str, default: str, without_key: tuple[str, ...] = ()) -> None:
        self.keys = {f"key of {name}" for name in with_key}
        self.issuers = dict.fromkeys(with_key, True) | dict.fromkeys(without_key, False)
        self.default = default

    def list(self, path: str) -> dict[str, Any]:
        if path == "mesh/keys":
            return {"data": {"key_info": {key: {"key_name": ""} for key in self.keys}}}
        assert path == "mesh/issuers"
        found = {
            name: {"is_default": name == self.default, "key_id": f"key of {name}" if with_key else ""}
            for name, with_key in self.issuers.items()
        }
        return {"data": {"key_info": found}}

    def read(self, path: str) -> dict[str, Any]:
        return {"data": {"certificate": path.removeprefix("mesh/issuer/") + "\n"}}

    def write_data(self, path: str, data: dict[str, str]) -> None:
        assert path == "mesh/config/issuers"
        self.default = data["default"]

    def delete(self, path: str) -> None:
        kind, name = path.removeprefix("mesh/").split("/")
        if kind == "key":
            assert name not in {f"key of {each}" for each, with_key in self.issuers.items() if with_key}
            self.keys.remove(name)
        else:
            del self.issuers[name]


def issuers(vault: Vault, *announced: str) -> Issuers:
    """With a Consul that announces the issuers, the newest at the end, below its active root."""
    roots = [
        {"Active": False, "RootCert": "old root", "IntermediateCerts": ["old"]},
        {"Active": True, "RootCert": "root\n", "IntermediateCerts": [f"{each}\n" for each in announced]},
    ]
    consul = SimpleNamespace(connect=SimpleNamespace(certificates=SimpleNamespace(list=lambda: {"Roots": roots})))
    return Issuers(cast(Clients, SimpleNamespace(vault=vault, consul=consul)))


def test_of_three_announced_issuers_the_newest_signs_in_whatever_order_openbao_lists_them() -> None:
    vault = Vault("third", "first", "old", "second", default="old")
    (change,) = issuers(vault, "first", "second", "third").changes()
    change.apply()
    assert vault.default == "third"


def test_an_announced_issuer_without_a_key_does_not_sign() -> None:
    vault = Vault("second", "first", "old", default="old", without_key=("third",))
    (change,) = issuers(vault, "first", "second", "third").changes()
    assert change.after == "second"


def test_nothing_changes_while_an_announced_issuer_signs() -> None:
    assert list(issuers(Vault("first", "old", default="first"), "first").changes()) == []


def test_what_is_not_announced_is_deleted_with_its_key() -> None:
    vault = Vault("first", "old", default="first", without_key=("root", "old root"))
    issuers(vault, "first").remove_others()
    assert (set(vault.issuers), vault.keys) == ({"first", "root"}, {"key of first"})


def test_a_key_whose_issuer_an_interrupted_run_has_deleted_is_deleted() -> None:
    vault = Vault("first", "old", default="first")
    del vault.issuers["old"]
    issuers(vault, "first").remove_others()
    assert vault.keys == {"key of first"}
