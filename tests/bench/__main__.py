"""Runs a measurement by its name; without a name it lists all."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

BENCHES = {path.stem: path for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}


def listed() -> str:
    summaries = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in BENCHES.items()}
    return "\n".join(f"  {name:<9} {text.splitlines()[0]}" for name, text in summaries.items())


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in BENCHES:
        runpy.run_path(str(BENCHES[name]), run_name="__main__")
    elif name:
        sys.exit(f"there is no measurement {name!r}; there are\n{listed()}")
    else:
        print(listed())
