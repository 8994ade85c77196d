"""Commands of the Justfile as a user at the terminal runs them."""

from __future__ import annotations

import subprocess
import sys

from stack.config import ROOT


def run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its output and exit code."""
    return subprocess.run(words(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def words(*arguments: str) -> list[str]:
    """Returns the command line, for a test that does something else while it runs."""
    return [sys.executable, "-m", "stack", *arguments]
