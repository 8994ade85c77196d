"""The KV seed is a seed: it follows its file until somebody changes the key by hand, and then leaves it alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack_under_test import RunningStack

from stack.cluster import consul
from stack.cluster.changes import apply_all
from stack.cluster.consul import Consul

KEY = "seed-test/greeting"


@pytest.fixture
def seed(running: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Beside the files there are: what no file names is removed.
    files = shutil.copytree(consul.FILES, tmp_path / "consul")
    file = files / "kv" / f"{KEY}.json"
    file.parent.mkdir()
    file.write_text('"hello"')
    monkeypatch.setattr(consul, "FILES", files)
    yield file
    running.clients.consul.kv.delete(KEY)


def deploy(running: RunningStack) -> int:
    return apply_all(Consul(running.stack, running.clients).changes())


def test_a_new_key_is_seeded_once(running: RunningStack, seed: Path) -> None:
    assert (deploy(running), running.kv(KEY)) == (1, '"hello"')
    assert deploy(running) == 0


def test_a_key_that_nobody_touched_follows_its_file(running: RunningStack, seed: Path) -> None:
    deploy(running)
    seed.write_text('"good morning"')
    assert (deploy(running), running.kv(KEY)) == (1, '"good morning"')


def test_a_key_that_was_changed_by_hand_is_kept_and_named(running: RunningStack, seed: Path) -> None:
    deploy(running)
    running.put_kv(KEY, '"mine"')
    seed.write_text('"good morning"')
    assert (deploy(running), running.kv(KEY)) == (0, '"mine"')
    assert Consul(running.stack, running.clients).live_edits() == [KEY]
