"""Measures the CPU time of the running stack at rest, part by part, for 5 minutes; exit 1 if it is over 0.10 core.

Nothing else may use the stack meanwhile. The figures hold on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import time

from bench.measurement.stack_parts import PartClock

from stack.config import current

GOAL_CORES = 0.10
_STEP_SECONDS = 15.0


def measure(minutes: float) -> dict[str, float]:
    """Returns the cores that each part has used on average."""
    clock, began = PartClock(current().state), time.monotonic()
    while (left := began + minutes * 60 - time.monotonic()) > 0:
        time.sleep(min(left, _STEP_SECONDS))
        clock.update()
    seconds = time.monotonic() - began
    return {name: used / seconds for name, used in clock.used().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./justw bench idle")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default 5)")
    chosen = parser.parse_args()
    cores = measure(chosen.minutes)
    if not cores:
        sys.exit("the stack does not run; start it with ./justw deploy")
    for name, value in sorted(cores.items(), key=lambda row: -row[1]):
        print(f"{name:<24} {value:.4f} core")
    print(f"{'all':<24} {sum(cores.values()):.4f} core over {chosen.minutes:g} min (goal: {GOAL_CORES:.2f})")
    sys.exit(0 if sum(cores.values()) <= GOAL_CORES else 1)
