"""Every KV migration leads to settings that exist, and removes none that exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.cluster.kv.migrations import leaves, load

from ..repository import ROOT, SERVICES

FOLDER = ROOT / "consul" / "kv-migrations"


def paths(service: str) -> set[str]:
    return {path for path, _ in leaves(json.loads((ROOT / "consul" / "kv" / "config" / f"{service}.json").read_text()))}


def document(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


@pytest.mark.parametrize("service", SERVICES)
def test_no_old_name_is_a_setting_of_today(service: str) -> None:
    rules = load(FOLDER, f"config/{service}")
    assert {rule.path for rule in rules} & paths(service) == set()


@pytest.mark.parametrize("service", SERVICES)
def test_every_move_ends_at_a_setting_of_today(service: str) -> None:
    rules = load(FOLDER, f"config/{service}")
    moved_on = {rule.path for rule in rules}
    assert {rule.target for rule in rules if rule.target} - moved_on - paths(service) == set()


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_a_migration_names_keys_of_services_and_each_old_path_once(file: Path) -> None:
    assert set(document(file)) <= {f"config/{service}" for service in SERVICES}
    for entry in document(file).values():
        old = [*(move["from"] for move in entry["moves"]), *(drop["path"] for drop in entry["drops"])]
        assert len(old) == len(set(old))
