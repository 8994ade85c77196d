"""Commands of the Justfile as a user at the terminal runs them."""

from __future__ import annotations

import subprocess
import sys

from stack.config import ROOT


def run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """What a command said, and its exit code."""
    return subprocess.run(words(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def words(*arguments: str) -> list[str]:
    """The command line itself, for who wants to start it and do something else meanwhile."""
    return [sys.executable, "-m", "stack", *arguments]
