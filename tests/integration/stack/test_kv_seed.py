"""Keys of Consul KV follow their files until somebody changes them by hand; edits move to today's names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack_under_test import RunningStack

from stack.cluster.kv import seed as kv_seed
from stack.cluster.kv.seed import KvSeed
from stack.cluster.planned_changes import apply_all

KEY = "seed-test/greeting"


@pytest.fixture
def file(running: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    files = shutil.copytree(kv_seed.FILES, tmp_path / "consul")
    made = files / "kv" / f"{KEY}.json"
    made.parent.mkdir()
    made.write_text('"hello"')
    monkeypatch.setattr(kv_seed, "FILES", files)
    yield made
    running.clients.consul.kv.delete(KEY)


def seed(running: RunningStack) -> KvSeed:
    return KvSeed(running.clients.consul.kv)


def deploy(running: RunningStack) -> int:
    return apply_all(seed(running).changes())


def test_a_new_key_is_seeded_once(running: RunningStack, file: Path) -> None:
    assert (deploy(running), running.kv(KEY)) == (1, '"hello"')
    assert deploy(running) == 0


def test_a_key_that_nobody_changed_follows_its_file(running: RunningStack, file: Path) -> None:
    deploy(running)
    file.write_text('"good morning"')
    assert (deploy(running), running.kv(KEY)) == (1, '"good morning"')


def test_a_key_that_was_changed_by_hand_is_kept_and_named(running: RunningStack, file: Path) -> None:
    deploy(running)
    running.put_kv(KEY, '"mine"')
    file.write_text('"good morning"')
    assert (deploy(running), running.kv(KEY)) == (0, '"mine"')
    assert seed(running).changed_by_hand() == [KEY]


def test_an_edit_made_by_hand_moves_to_the_new_name_of_its_setting(running: RunningStack, file: Path) -> None:
    file.write_text('{"greeting": "hello", "times": 1}')
    deploy(running)
    running.put_kv(KEY, '{"greeting": "ahoy", "times": 1}')
    migration = {KEY: {"moves": [{"from": "greeting", "to": "words.first", "seed": "hello"}], "drops": []}}
    (kv_seed.FILES / "kv-migrations" / "999-test.json").write_text(json.dumps(migration))
    file.write_text('{"words": {"first": "hello"}, "times": 1}')
    (change,) = seed(running).changes()
    assert change.notes == (f'{KEY}: greeting="ahoy" was changed by hand and is now words.first',)
    assert deploy(running) == 1
    assert json.loads(running.kv(KEY)) == {"words": {"first": "ahoy"}, "times": 1}
    assert deploy(running) == 0
    assert seed(running).changed_by_hand() == [KEY]
