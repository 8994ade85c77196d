"""A benchmark runs only if what is asked for is understood."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stack.config import ROOT


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "bench"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("option", ["--help", "--slot=5"])
@pytest.mark.parametrize("name", ["starts", "lag"])
def test_a_benchmark_without_options_is_not_run_with_one(name: str, option: str) -> None:
    done = bench(name, option)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"benchmark '{name}' has no options" in done.stderr


@pytest.mark.parametrize("name", ["idle", "settle", "reads"])
def test_a_benchmark_with_options_lists_them(name: str) -> None:
    done = bench(name, "--help")
    assert done.returncode == 0
    assert "usage: ./justw bench" in done.stdout


def test_all_benchmarks_are_listed() -> None:
    assert bench().stdout == bench("--help").stdout
    assert "  starts " in bench().stdout
