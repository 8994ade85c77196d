"""Options of the benchmarks on the command line: `./justw bench NAME --rounds 5`."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec


def options(name: str, *, rounds: int, seconds: float, against: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the number of rounds, the length of a visit, and `--against` if it has a meaning here."""
    parser = argparse.ArgumentParser(prog=f"./justw bench {name}", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds (default {rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of one visit (default {seconds:g})")
    if against:
        parser.add_argument("--against", metavar="REV", help=against)
    return parser


def need_peers(*modules: str) -> None:
    """Ends the program if a package of the peers is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed; install the peers of the benchmarks: uv sync --group bench")
