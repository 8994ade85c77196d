"""The measured code: this checkout, and for `--against REV` a clone at that commit with its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.config import ROOT


@dataclass(frozen=True)
class Checkout:
    """A checkout with its Python environment."""

    name: str
    root: Path
    python: str

    def settings(self, program: str, **changes: Any) -> str:
        """Returns the shipped settings of a program as JSON, with those changes whose settings it has."""
        shipped = json.loads((self.root / "consul" / "kv" / "config" / f"{program}.json").read_text())
        return json.dumps(shipped | {name: value for name, value in changes.items() if name in shipped})

    def has_setting(self, program: str, name: str) -> bool:
        return name in json.loads(self.settings(program))


def here() -> Checkout:
    """Returns this checkout."""
    return Checkout("this checkout", ROOT, sys.executable)


@contextmanager
def at_revision(revision: str) -> Iterator[Checkout]:
    """Clones this repository at a revision, makes the environment and the stubs there; removes all at the end."""
    with tempfile.TemporaryDirectory(prefix="waypost-bench-") as folder:
        root = Path(folder) / "checkout"
        _run("git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(root))
        _run("git", "-C", str(root), "checkout", "--quiet", "--detach", _commit(revision))
        _run(str(root / "justw"), "protos", env=_plain_environment())
        yield Checkout(revision, root, str(root / ".venv" / "bin" / "python"))


@contextmanager
def checkouts(revision: str | None) -> Iterator[list[Checkout]]:
    """Yields this checkout, and the other one if a revision is given."""
    if revision is None:
        yield [here()]
    else:
        with at_revision(revision) as other:
            yield [here(), other]


def _commit(revision: str) -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"there is no commit {revision!r} in this repository")
    return found.stdout.strip()


def _plain_environment() -> dict[str, str]:
    """The environment without what `./justw` of this checkout has set for itself."""
    ours = ("UV_PROJECT_ENVIRONMENT", "VIRTUAL_ENV", "PYTHONPATH", "WAYPOST_STACK", "WAYPOST_SLOT")
    return {name: value for name, value in os.environ.items() if name not in ours}


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
