"""`projection-rebuild NAME`: rebuilds a read table of the Order Service from all events and replaces the live one."""

from __future__ import annotations

from stack.config import Stack
from stack.console import StackError, say
from stack.operations import nomad_actions

PROJECTIONS = ("orders",)


def rebuild(stack: Stack, name: str) -> int:
    """Prints the output of the rebuild; returns 0 when the new table equals the events."""
    if name not in PROJECTIONS:
        raise StackError(
            f"projection {name!r} cannot be rebuilt",
            f"there is no projection of this name with a read table; one of: {', '.join(PROJECTIONS)}",
            "./justw projection-rebuild orders",
        )
    done = nomad_actions.run(stack, "order-service", "worker", f"rebuild-{name}")
    lines = [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]
    for line in lines:
        say(line)
    if not done.returncode:
        return 0
    why = lines[-1] if lines and lines[-1].startswith("rejected") else nomad_actions.log_tail(done)
    raise StackError(f"projection {name} is not rebuilt", why, "the live table is unchanged; try again")
