"""What is known about a fault outside the process that keeps it: a file in the state of the stack, until it is undone.

Invariant: what a fault is about to do is in its record before it does it, so that anybody can undo it.
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
class Record:
    """One fault that is about to begin (`starting`), acts (`active`), or could not be undone (`stuck`)."""

    id: str
    """What it acts on: two faults cannot have the same."""
    words: list[str]
    """As it was ordered: the name of the fault and its arguments."""
    seconds: float
    until: float = 0.0
    """Unix time of its end."""
    phase: str = "starting"
    note: str = ""
    """What it does while it acts, why it failed when it is stuck."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What it takes to undo it."""

    def left(self) -> float:
        """Seconds to its end."""
        return max(0.0, self.until - time.time())


def folder(stack: Stack) -> Path:
    return stack.state / "chaos"


def keeper(stack: Stack, record_id: str) -> Daemon:
    """The process that keeps a fault."""
    return Daemon(record_id, folder(stack))


def file_of(stack: Stack, record_id: str) -> Path:
    return folder(stack) / f"{record_id}.json"


def write(stack: Stack, record: Record) -> None:
    file = file_of(stack, record.id)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(asdict(record), indent=2) + "\n")
    partial.rename(file)


def read(stack: Stack, record_id: str) -> Record | None:
    """The record as it is now; None once the fault is undone."""
    try:
        return Record(**json.loads(file_of(stack, record_id).read_text()))
    except FileNotFoundError:
        return None


def remove(stack: Stack, record_id: str) -> None:
    file_of(stack, record_id).unlink(missing_ok=True)
    (folder(stack) / f"{record_id}.pid").unlink(missing_ok=True)


def records(stack: Stack) -> Iterator[Record]:
    """Every fault that is not undone, the newest first."""
    files = sorted(folder(stack).glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        found = read(stack, file.stem)
        if found:
            yield found
