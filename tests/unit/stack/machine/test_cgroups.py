"""The control groups of a destroyed stack: its own go, those of others stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.machine import cgroups, processes

OURS, THEIRS = "0b89d6c6-5674-894c-87a8-41c07e4cabe6", "ec8a722d-3cdc-f702-7242-bc6d1d3926aa"


@pytest.fixture(params=["memory/nomad/{}.web", "nomad.slice/share.slice/{}.web.scope"])
def group(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(root: Path, group: str, *allocations: str) -> list[Path]:
    found = [root / group.format(allocation) for allocation in allocations]
    for folder in found:
        folder.mkdir(parents=True)
    return found


def test_the_groups_of_another_stack_stay(tmp_path: Path, group: str) -> None:
    ours, theirs = made(tmp_path, group, OURS, THEIRS)
    cgroups.remove([OURS], tmp_path)
    assert not ours.exists()
    assert theirs.exists()


@pytest.mark.parametrize("others", [[], [4711]])
def test_what_all_share_goes_with_the_last_nomad(
    tmp_path: Path, group: str, others: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "named", lambda name: others)
    made(tmp_path, group, OURS)
    (tmp_path / "cpuset/nomad/share").mkdir(parents=True)
    cgroups.remove([OURS], tmp_path)
    left = [path for path in tmp_path.rglob("*") if "nomad" in path.name]
    assert bool(left) is bool(others)
