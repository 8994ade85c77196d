"""`test`: the tiers of the test suite; those that need a running system get one of their own, beside a developer's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from stack.config import KNOWN_SLOTS, ROOT, Stack
from stack.console import StackError, say
from stack.deploy import deploy
from stack.teardown import destroy

# By name only: what takes minutes, from all tiers.
LONG = "long"
# The order is from quick to slow. What is on the right of a tier needs a running stack.
TIERS = {"unit": False, "contract": False, "integration": True, "infra": True, "chaos": True}


def test(arguments: Sequence[str]) -> int:
    """Runs the named tiers, or all; the test stack is deployed for those that need it and destroyed afterwards.

    `long` runs what every tier leaves out, of all or of the named ones. WAYPOST_KEEP=1 leaves the stack for next time.
    """
    marked = ["-m", LONG] if LONG in arguments else []
    arguments = [argument for argument in arguments if argument != LONG]
    unknown = set(arguments) - set(TIERS)
    if unknown:
        raise StackError(
            f"no tier {', '.join(sorted(unknown))}",
            "that is not one of the tiers",
            f"one of: {' '.join(TIERS)}, or {LONG}",
        )
    tiers = [tier for tier in TIERS if not arguments or tier in arguments]
    folders = list(_folders(tiers))
    stack = Stack("test", KNOWN_SLOTS["test"])
    if not folders:
        raise StackError("nothing to run", f"no test in {' '.join(tiers)}", f"one of: {' '.join(TIERS)}")
    if not any(TIERS[tier] for tier in tiers):
        return _pytest([*folders, *marked], stack)
    try:
        deploy(stack)
        return _pytest([*folders, *marked], stack)
    finally:
        if not os.environ.get("WAYPOST_KEEP"):
            say()
            destroy(stack)


def _folders(tiers: Sequence[str]) -> Iterator[str]:
    for tier in tiers:
        if any((ROOT / "tests" / tier).rglob("test_*.py")):
            yield str(ROOT / "tests" / tier)
        else:
            say(f"tier {tier} is skipped: it has no test yet")


def _pytest(arguments: Sequence[str], stack: Stack) -> int:
    env = os.environ | {"WAYPOST_STACK": stack.name, "WAYPOST_SLOT": str(stack.slot)}
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=env, check=False).returncode
