"""`projection-rebuild NAME`: the Order Service rebuilds a read table from all events and switches over to it."""

from __future__ import annotations

from stack.config import Stack
from stack.console import StackError, say
from stack.operations import nomad_actions

PROJECTIONS = ("orders", "outbox")


def rebuild(stack: Stack, name: str) -> int:
    """Prints the output of the rebuild; returns 0 when the new table equals the events."""
    if name not in PROJECTIONS:
        raise StackError(
            f"there is no projection {name!r}", "it has no read table", "./justw projection-rebuild orders"
        )
    done = nomad_actions.run(stack, "order-service", "worker", f"rebuild-{name}")
    lines = [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]
    for line in lines:
        say(line)
    if not done.returncode:
        return 0
    why = lines[-1] if lines and lines[-1].startswith("refused") else nomad_actions.log_tail(done)
    raise StackError(f"projection {name} is not rebuilt", why, "the live table is unchanged; try again")
