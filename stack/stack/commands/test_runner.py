"""`test`: runs the tiers of the test suite; deploys stacks for the tiers that need a running system.

If several tiers need a stack, two stacks run and test files run in parallel, because tests spend most of their time
waiting.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from stack.commands.deploy import deploy
from stack.commands.teardown import destroy
from stack.config import KNOWN_SLOTS, ROOT, Stack
from stack.console import StackError, say

# The slow tests of all tiers, which run only if named. They measure, so nothing else may run on the machine.
LONG = "long"
# Whether a tier needs a running stack.
TIERS = {"unit": False, "contract": False, "integration": True, "infra": True, "chaos": True}
FIRST, SECOND = (Stack(name, KNOWN_SLOTS[name]) for name in ("test", "test_second"))


def names() -> list[str]:
    """Returns every name that `test` accepts."""
    return [*TIERS, LONG]


def test(arguments: Sequence[str]) -> int:
    """Runs the named tiers, or all; deploys the test stacks that they need and destroys them afterwards.

    `long` runs the slow tests, of all tiers or of the named ones. WAYPOST_KEEP=1 keeps the stacks for the next run.
    """
    marked = ["-m", LONG] if LONG in arguments else []
    arguments = [argument for argument in arguments if argument != LONG]
    unknown = set(arguments) - set(TIERS)
    if unknown:
        raise StackError(
            f"no tier {', '.join(sorted(unknown))}",
            "this is not a tier of the test suite",
            f"one of: {' '.join(TIERS)}, or {LONG}",
        )
    tiers = [tier for tier in TIERS if not arguments or tier in arguments]
    folders = list(_folders(tiers))
    if not folders:
        raise StackError("nothing to run", f"no test in {' '.join(tiers)}", f"one of: {' '.join(TIERS)}")
    needing = sum(TIERS[tier] for tier in tiers)
    stacks = [FIRST, SECOND] if needing > 1 and not marked else [FIRST] if needing else []
    try:
        _each("deploy", deploy, stacks)
        return _pytest([*folders, *marked], stacks)
    finally:
        if not _kept():
            say()
            _each("destroy", destroy, stacks)


def _folders(tiers: Sequence[str]) -> Iterator[str]:
    for tier in tiers:
        if any((ROOT / "tests" / tier).rglob("test_*.py")):
            yield str(ROOT / "tests" / tier)
        else:
            say(f"tier {tier} is skipped: it has no test yet")


def _each(command: str, here: Callable[[Stack], object], stacks: Sequence[Stack]) -> None:
    """Runs a command on every stack in parallel; prints the output for the first, and only failures of the others."""
    words = [sys.executable, "-m", "stack", command]
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(_run, words, stack, quiet=True) for stack in stacks[1:]]
        for stack in stacks[:1]:
            here(stack)
    for stack, done in zip(stacks[1:], others, strict=True):
        if done.result().returncode:
            raise StackError(
                f"{command} of stack {stack.name!r} failed",
                (done.result().stderr or done.result().stdout).strip(),
                f"WAYPOST_STACK={stack.name} ./justw {command}",
            )


def _pytest(arguments: Sequence[str], stacks: Sequence[Stack]) -> int:
    """Runs pytest with one worker for each stack (tests/conftest.py assigns them)."""
    # In the order of the files, so that the fixtures of a module are set up once.
    spread = ["-n", str(len(stacks)), "--dist", "loadfile", "--no-loadscope-reorder"] if len(stacks) > 1 else []
    names = " ".join(stack.name for stack in stacks)
    disposable = "" if _kept() else "1"  # a test may remove a stack that is destroyed afterwards
    command = [sys.executable, "-m", "pytest", *arguments, *spread]
    return _run(command, FIRST, WAYPOST_STACKS=names, WAYPOST_DISPOSABLE=disposable).returncode


def _kept() -> bool:
    return bool(os.environ.get("WAYPOST_KEEP"))


def _run(command: Sequence[str], stack: Stack, quiet: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"WAYPOST_STACK": stack.name, "WAYPOST_SLOT": str(stack.slot)} | more
    return subprocess.run(command, cwd=ROOT, env=env, check=False, text=True, capture_output=quiet)
