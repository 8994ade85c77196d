"""Applies the files with config entries to Consul: `consul/config/KIND/NAME.hcl` and `consul/intentions/NAME.hcl`.

A file gives kind and name as its path does, and each field the name that Consul returns: `PathExact`, not `path_exact`.
It has no blocks, so an object is written with an equals sign: `HTTP = { … }`. Of traffic rules it has only fields that
calls follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hcl2
from consul import ConsulException

from chassis.calls.routing.discovery_chain import seconds
from chassis.calls.routing.followed_fields import ENTRIES, not_followed
from stack.cluster.planned_changes import Change, shown
from stack.config import ROOT
from stack.console import StackError

FILES = ROOT / "consul"
# In the order in which they are written: all others need the protocol of a service, splitter and router its subsets.
FOLDERS = {
    "service-defaults": "config/service-defaults",
    "service-resolver": "config/service-resolver",
    "service-splitter": "config/service-splitter",
    "service-router": "config/service-router",
    "service-intentions": "intentions",
}
# Fields that Consul sets.
_ADDED = frozenset({"CreateIndex", "ModifyIndex", "Hash", "Precedence", "Type"})
_QUOTED = hcl2.SerializationOptions(with_comments=False)
_PLAIN = hcl2.SerializationOptions(with_comments=False, strip_string_quotes=True, preserve_heredocs=False)
_NEXT = "correct the file"


class ConfigEntries:
    """Compares the config entries of a running Consul with their files."""

    def __init__(self, api: Any) -> None:
        self._api = api.config

    def changes(self) -> Iterator[Change]:
        """Yields changes to the entries of the kinds in `FOLDERS`; raises StackError for a file that is not valid."""
        wanted = {kind: {file: read(file, kind) for file in _files(kind)} for kind in FOLDERS}
        late: list[Change] = []
        for kind, entries in wanted.items():
            found = self._found(kind)
            for file, entry in entries.items():
                before = found.get(entry["Name"])
                changes = self._change(file, entry, before)
                if _subsets(before) <= _subsets(entry):
                    yield from changes
                else:
                    late += changes
        for kind in reversed(FOLDERS):
            if kind == "service-resolver":  # a subset can go once no splitter and no router refers to it
                yield from late
            kept = {entry["Name"] for entry in wanted[kind].values()}
            for name, entry in sorted(self._found(kind).items()):
                if name not in kept:
                    yield Change(_where(entry), shown(_plain(entry)), "", partial(self._api.delete, kind, name))

    def _found(self, kind: str) -> dict[str, dict[str, Any]]:
        return {entry["Name"]: entry for entry in self._api.list(kind) or ()}

    def _change(self, file: Path, entry: dict[str, Any], found: dict[str, Any] | None) -> Iterator[Change]:
        before, after = shown(_plain(found)) if found else "", shown(_plain(entry))
        if before != after:
            yield Change(_where(entry), before, after, partial(self._put, file, entry))

    def _put(self, file: Path, entry: dict[str, Any]) -> None:
        try:
            self._api.put(entry)
        except ConsulException as error:
            why = " ".join(str(error).split())
            raise StackError(f"Consul does not accept {_name(file)}", why, _NEXT) from error


def read(file: Path, kind: str) -> dict[str, Any]:
    """Returns the entry in a file; raises StackError if the file is not valid, or is for another kind or name."""
    try:
        tree = hcl2.parses(file.read_text())
    except Exception as error:  # the parser has no class for its errors
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise StackError(f"{_name(file)} is not valid HCL", why, _NEXT) from error
    if problem := next(_not_literal(hcl2.serialize(tree, serialization_options=_QUOTED)), None):
        raise StackError(f"{_name(file)} is not valid as a config entry", problem, _NEXT)
    entry: dict[str, Any] = hcl2.serialize(tree, serialization_options=_PLAIN)
    for key, wanted in (("Kind", kind), ("Name", file.stem)):
        if entry.get(key) != wanted:
            why = f"{key} is {entry.get(key)!r}, and its path says {wanted!r}"
            raise StackError(f"{_name(file)} is for another config entry", why, _NEXT)
    if field := next(not_followed(entry, ENTRIES.get(kind)), None):
        why = f"{field} is not followed by calls"
        raise StackError(f"{_name(file)} has a field without effect", why, "remove it: docs/traffic.md")
    try:
        _plain(entry)
    except ValueError as error:
        raise StackError(f"{_name(file)} is not valid as a config entry", str(error), _NEXT) from error
    return entry


def _subsets(entry: dict[str, Any] | None) -> set[str]:
    return set((entry or {}).get("Subsets") or ())


def _files(kind: str) -> list[Path]:
    return sorted((FILES / FOLDERS[kind]).glob("*.hcl"))


def _name(file: Path) -> str:
    return (Path("consul") / file.relative_to(FILES)).as_posix()


def _where(entry: dict[str, Any]) -> str:
    return f"consul {entry['Kind']} {entry['Name']}"


def _not_literal(value: Any, where: str = "the file") -> Iterator[str]:
    """Yields a sentence for each block and expression, which an entry cannot have; literal strings are in quotes."""
    match value:
        case {"__is_block__": True}:
            yield f"{where} is a block: write {where} = {{ … }}"
        case dict():
            for key, inner in value.items():
                yield from _not_literal(inner, key)
        case list():
            for inner in value:
                yield from _not_literal(inner, where)
        case str() if not value.startswith('"') or "${" in value or "%{" in value:
            yield f"{where} is an expression: {value}"


def _plain(value: Any) -> Any:
    """Returns a value without what Consul adds, and without empty fields, which Consul returns for those of no file.

    Sources are sorted by name: their order has no meaning. Durations and weights have one spelling. Raises ValueError.
    """
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, dict):
        return value
    fields = {key: _plain(inner) for key, inner in value.items() if key not in _ADDED}
    if fields.get("RequestTimeout"):
        fields["RequestTimeout"] = f"{seconds(fields['RequestTimeout']):g}s"
    if "Sources" in fields:
        fields["Sources"] = sorted(fields["Sources"], key=lambda source: str(source.get("Name")))
    return {key: inner for key, inner in fields.items() if inner}
