"""Runs a benchmark by its name with its options; without a name it lists all."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

# `parts/` needs no stack, `system/` a running one.
FOLDERS = ("parts", "system")
BENCHES = {
    path.stem.replace("_", "-"): path for folder in FOLDERS for path in sorted((HERE / folder).glob("[a-z]*.py"))
}


def summary(name: str) -> str:
    """Returns the first line of what a benchmark says of itself."""
    return (ast.get_docstring(ast.parse(BENCHES[name].read_text())) or "").partition("\n")[0]


def listed() -> str:
    """Returns a line for each benchmark."""
    return "\n".join(f"  {name:<9} {summary(name)}" for name in BENCHES)


def _has_options(name: str) -> bool:
    text = BENCHES[name].read_text()
    return "options(" in text or "argparse" in text


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in BENCHES and sys.argv[2:] and not _has_options(name):
        sys.exit(f"benchmark {name!r} has no options: {summary(name)}")
    elif name in BENCHES:
        del sys.argv[1]
        runpy.run_path(str(BENCHES[name]), run_name="__main__")
    elif name.startswith("-") or not name:
        print(listed())
    else:
        sys.exit(f"there is no benchmark {name!r}; there are\n{listed()}")
