"""`projection-rebuild NAME`: has the Order Service make a read table anew from all events and switch over to it."""

from __future__ import annotations

from collections.abc import Sequence

from stack.config import Stack
from stack.console import StackError, say
from stack.operations import nomad_actions

PROJECTIONS = ("orders", "errands")


def rebuild(stack: Stack, arguments: Sequence[str]) -> int:
    """Says what the rebuild says; 0 when the new table equals the events."""
    if len(arguments) != 1 or arguments[0] not in PROJECTIONS:
        got = " ".join(arguments) or "nothing"
        raise StackError("which projection?", f"got {got!r}", "./justw projection-rebuild orders")
    done = nomad_actions.run(stack, "order-service", "worker", f"rebuild-{arguments[0]}")
    lines = [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]
    for line in lines:
        say(line)
    if not done.returncode:
        return 0
    why = lines[-1] if lines and lines[-1].startswith("refused") else nomad_actions.last_words(done)
    raise StackError(f"projection {arguments[0]} is not rebuilt", why, "the live table goes on as it was; try again")
