"""A full disk or a closed folder ends a command with what, why and what next, not with a traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stack.config import ROOT
from stack.machine import os_errors


def error(code: int, file: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), file) if file else OSError(code, os.strerror(code))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYPOST_CACHE", str(tmp_path / "cache"))


def test_a_full_disk_is_named_with_what_it_has_left() -> None:
    shown = os_errors.explain("deploy", error(errno.ENOSPC, str(ROOT / ".waypost" / "dev" / "artifacts" / "raw.pyz")))
    assert "No space left" in shown.why
    assert f"GB for {ROOT}/.waypost/dev" in shown.why
    assert "WAYPOST_CACHE" not in shown.next_step  # it would not move the checkout


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_does_not_say_its_file_names_every_disk_that_may_be_full(code: int, tmp_path: Path) -> None:
    shown = os_errors.explain("deploy", error(code))
    assert str(ROOT) in shown.why
    assert str(tmp_path / "cache") in shown.why
    assert "WAYPOST_CACHE" in shown.next_step


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_closed_folder_is_named_and_the_cache_can_be_moved(code: int, tmp_path: Path) -> None:
    ours = os_errors.explain("deploy", error(code, str(ROOT / ".waypost")))
    assert str(ROOT / ".waypost") in ours.what
    assert "WAYPOST_CACHE" not in ours.next_step
    assert "WAYPOST_CACHE" in os_errors.explain("deploy", error(code, str(tmp_path / "cache" / "tools"))).next_step
