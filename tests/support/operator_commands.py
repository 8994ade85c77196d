"""Commands of the Justfile as a user at the terminal runs them."""

from __future__ import annotations

import subprocess
import sys

from stack.cluster import agents
from stack.config import LAST_SLOT, ROOT, Stack
from stack.console import StackError


def run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its output and exit code."""
    return subprocess.run(words(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def words(*arguments: str) -> list[str]:
    """Returns the command line, for a test that does something else while it runs."""
    return [sys.executable, "-m", "stack", *arguments]


def stack_in_a_free_slot(name: str) -> Stack | None:
    """Returns a stack whose ports are free, None if every slot is taken."""
    return next((stack for stack in (Stack(name, slot) for slot in range(LAST_SLOT, 1, -1)) if _is_free(stack)), None)


def _is_free(stack: Stack) -> bool:
    try:
        agents.require_ports(stack)
    except StackError:
        return False
    return True
