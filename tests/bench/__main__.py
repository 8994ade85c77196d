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


def listed() -> str:
    """Returns a line for each benchmark."""
    summaries = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in BENCHES.items()}
    return "\n".join(f"  {name:<9} {text.splitlines()[0]}" for name, text in summaries.items())


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in BENCHES:
        del sys.argv[1]
        runpy.run_path(str(BENCHES[name]), run_name="__main__")
    elif name:
        sys.exit(f"there is no benchmark {name!r}; there are\n{listed()}")
    else:
        print(listed())
