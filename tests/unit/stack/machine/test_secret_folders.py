"""After a loss of power the folders for secrets are in memory again, and what was on disk is deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.machine.secret_folders import mount_again

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
    reason="only root can mount",
)


@pytest.fixture
def allocations(tmp_path: Path) -> Iterator[Path]:
    """The folders of two allocations with a task each, as Nomad leaves them on disk."""
    for allocation in ("one", "two"):
        for name in ("secrets", "private", "local"):
            folder = tmp_path / "alloc" / allocation / "task" / name
            folder.mkdir(parents=True)
            (folder / "token").write_text("secret")
    yield tmp_path / "alloc"
    for folder in (tmp_path / "alloc").glob("*/*/*"):
        if folder.is_mount():
            subprocess.run(["umount", folder], check=True)


def test_each_folder_for_secrets_is_mounted_in_memory_and_its_files_on_disk_are_deleted(allocations: Path) -> None:
    expected = {allocations / a / "task" / name for a in ("one", "two") for name in ("secrets", "private")}
    assert set(mount_again(allocations)) == expected
    for folder in expected:
        assert folder.is_mount()
        assert [entry.name for entry in folder.iterdir()] == [".nomad-mount"]
        assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o777, 65534)
        subprocess.run(["umount", folder], check=True)
        assert list(folder.iterdir()) == []
    assert (allocations / "one" / "task" / "local" / "token").read_text() == "secret"
    assert not (allocations / "one" / "task" / "local").is_mount()


def test_a_folder_that_is_in_memory_keeps_its_files(allocations: Path) -> None:
    mount_again(allocations)
    token = allocations / "one" / "task" / "secrets" / "token"
    token.write_text("renewed")
    assert mount_again(allocations) == []
    assert token.read_text() == "renewed"


def test_an_allocation_with_a_process_keeps_its_files(allocations: Path) -> None:
    task = allocations / "one" / "task"
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=task, stdin=subprocess.PIPE) as process:
        mounted = {folder.parent for folder in mount_again(allocations)}
        process.kill()
    assert mounted == {allocations / "two" / "task"}
    assert (task / "secrets" / "token").read_text() == "secret"


def test_an_ordinary_user_mounts_nothing(allocations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert mount_again(allocations) == []
    assert (allocations / "one" / "task" / "secrets" / "token").read_text() == "secret"
