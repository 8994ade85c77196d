"""Moves settings that were changed by hand in Consul KV to their current names.

A file in `consul/kv-migrations` lists for each key the `moves` (`from` a path, `to` a path) and the `drops` (a `path`
that is no longer a setting). `seed` is the value of the path in the old file: a different value was set by hand.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A path of an earlier release, and its current path; None if it is no longer a setting."""

    path: str
    seed: Any
    target: str | None = None


@dataclass
class Migrated:
    """The settings under their current names, and a sentence about each change."""

    settings: Settings
    notes: list[str] = field(default_factory=list)
    renamed: int = 0
    dropped: int = 0
    added: int = 0


def load(folder: Path, key: str) -> list[Rule]:
    """Returns the rules for a key, those of the oldest migration first."""
    found = [json.loads(file.read_text()).get(key, {}) for file in sorted(folder.glob("*.json"))]
    return [rule for entry in found for rule in _rules(entry)]


def _rules(entry: dict[str, Any]) -> Iterator[Rule]:
    yield from (Rule(move["from"], move["seed"], move["to"]) for move in entry.get("moves", []))
    yield from (Rule(drop["path"], drop["seed"]) for drop in entry.get("drops", []))


def migrate(key: str, settings: Settings, seed: Settings, rules: list[Rule]) -> Migrated:
    """Applies the rules; afterwards every setting of the seed that is missing gets the seed's value."""
    migrated = Migrated(copy.deepcopy(settings))
    for rule in rules:
        _apply(rule, key, migrated)
    for path, value in leaves(seed):
        if _parent(migrated.settings, path) is None:
            _put(migrated.settings, path, value)
            migrated.added += 1
    migrated.settings = _in_order(migrated.settings, seed)
    migrated.notes.extend(_summary(key, migrated))
    return migrated


def leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and the value of every setting."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _apply(rule: Rule, key: str, migrated: Migrated) -> None:
    parent = _parent(migrated.settings, rule.path)
    if parent is None:
        return
    value = parent.pop(rule.path.rpartition(".")[2])
    _prune(migrated.settings, rule.path)
    if value == rule.seed:
        migrated.renamed += rule.target is not None
        migrated.dropped += rule.target is None
        return
    by_hand = f"{key}: {rule.path}={json.dumps(value)} was changed by hand and"
    if rule.target is None:
        migrated.notes.append(f"{by_hand} is no longer a setting: dropped")
    elif _parent(migrated.settings, rule.target) is not None:
        migrated.notes.append(f"{by_hand} is now {rule.target}, which has a value: dropped")
    else:
        _put(migrated.settings, rule.target, value)
        migrated.notes.append(f"{by_hand} is now {rule.target}")


def _summary(key: str, migrated: Migrated) -> Iterator[str]:
    new = migrated.added - migrated.renamed
    counts = {"renamed": migrated.renamed, "no longer settings": migrated.dropped, "new": new}
    parts = [f"{count} {what}" for what, count in counts.items() if count > 0]
    if parts:
        yield f"{key}: settings that were not changed by hand follow the file: {', '.join(parts)}"


def _parent(settings: Settings, path: str) -> Settings | None:
    """Returns the object that holds the last name of a path; None if it holds none."""
    *above, name = path.split(".")
    found: Any = settings
    for part in above:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and name in found else None


def _put(settings: Settings, path: str, value: Any) -> None:
    *above, name = path.split(".")
    for part in above:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[name] = value


def _prune(settings: Settings, path: str) -> None:
    """Removes the objects along a path that became empty."""
    above = path.rpartition(".")[0]
    if above and (parent := _parent(settings, above)) is not None and parent[above.rpartition(".")[2]] == {}:
        del parent[above.rpartition(".")[2]]
        _prune(settings, above)


def _in_order(settings: Settings, seed: Settings) -> Settings:
    """Returns the settings in the order of the seed; a name that the seed does not have comes last."""
    names = [*(name for name in seed if name in settings), *(name for name in settings if name not in seed)]
    return {name: _value_in_order(settings[name], seed.get(name)) for name in names}


def _value_in_order(value: Any, seed: Any) -> Any:
    return _in_order(value, seed) if isinstance(value, dict) and isinstance(seed, dict) else value
