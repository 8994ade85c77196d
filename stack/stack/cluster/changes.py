"""What a deploy would do: a list of named changes that can be shown as a diff, or applied."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from stack.config import Stack


@dataclass(frozen=True)
class Change:
    """One thing that differs from the files: where, what it is now, what it will be, and how to get there."""

    where: str
    before: str
    after: str
    apply: Callable[[], Any]

    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), "now", "after deploy", lineterm="", n=2
        )
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def apply_all(changes: Iterable[Change]) -> int:
    count = 0
    for change in changes:
        change.apply()
        count += 1
    return count


def shown(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def render(file: Path, stack: Stack, **more: str) -> str:
    """The text of a file with `${name}` replaced by what this stack decides; other `${…}` stay as they are."""
    known = {"nomad_url": stack.url("nomad"), "postgres_port": str(stack.port("postgres"))}
    return Template(file.read_text()).safe_substitute(known, **more)
