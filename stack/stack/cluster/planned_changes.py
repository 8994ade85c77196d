"""Changes that a deploy would make: each can be shown as a diff, or applied."""

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
    """One difference from the files: where it is, the text before and after, and the call that makes it."""

    where: str
    before: str
    after: str
    apply: Callable[[], Any]
    notes: tuple[str, ...] = ()
    """Plain sentences about the change, for `plan` and `deploy` to print."""

    @property
    def action(self) -> str:
        """Returns `add`, `change` or `remove`."""
        return "change" if self.before and self.after else "remove" if self.before else "add"

    def diff(self) -> str:
        """Returns the changed lines as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), "now", "after deploy", lineterm="", n=2
        )
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def apply_all(changes: Iterable[Change]) -> int:
    """Applies every change and returns their number."""
    count = 0
    for change in changes:
        change.apply()
        count += 1
    return count


def shown(value: object) -> str:
    """Returns a value as JSON with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True)


def render(file: Path, stack: Stack, **more: str) -> str:
    """Returns the text of a file with `${name}` replaced by the values of this stack; other `${…}` stay."""
    known = {"nomad_url": stack.url("nomad"), "postgres_port": str(stack.port("postgres"))}
    return Template(file.read_text()).safe_substitute(known, **more)
