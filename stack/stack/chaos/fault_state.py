"""Stores the state of each active fault as a file in the state folder of the stack, until the fault is undone.

Invariant: the data needed to undo a step of a fault is in its file before the step, so any process can undo it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stack.config import Stack
from stack.machine.daemons import Daemon


@dataclass
class FaultState:
    """One fault that is about to begin (`starting`), acts (`active`), or could not be undone (`stuck`)."""

    id: str
    """The affected part: two faults cannot have the same."""
    words: list[str]
    """The name of the fault and its arguments, as typed."""
    seconds: float
    until: float = 0.0
    """Unix time of its end."""
    phase: str = "starting"
    note: str = ""
    """Its effect while it is active, the error when it is stuck."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The data that is needed to undo it."""

    def left(self) -> float:
        """Returns the seconds to its end."""
        return max(0.0, self.until - time.time())


def folder(stack: Stack) -> Path:
    return stack.state / "chaos"


def runner(stack: Stack, state_id: str) -> Daemon:
    """Returns the background process that runs a fault."""
    return Daemon(state_id, folder(stack))


def file_of(stack: Stack, state_id: str) -> Path:
    return folder(stack) / f"{state_id}.json"


def write(stack: Stack, state: FaultState) -> None:
    file = file_of(stack, state.id)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(asdict(state), indent=2) + "\n")
    partial.rename(file)


def read(stack: Stack, state_id: str) -> FaultState | None:
    """Returns the current state; None once the fault is undone."""
    try:
        return FaultState(**json.loads(file_of(stack, state_id).read_text()))
    except FileNotFoundError:
        return None


def remove(stack: Stack, state_id: str) -> None:
    file_of(stack, state_id).unlink(missing_ok=True)
    (folder(stack) / f"{state_id}.pid").unlink(missing_ok=True)


def states(stack: Stack) -> Iterator[FaultState]:
    """Yields every fault that is not undone, the newest first."""
    files = sorted(folder(stack).glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        found = read(stack, file.stem)
        if found:
            yield found
