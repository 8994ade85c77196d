"""How long until an event is visible in lists, under 50 orders a second for 20 seconds; the goal is p99 ≤ 250 ms."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from people import register
from stack_under_test import RunningStack
from visibility import measure

if __name__ == "__main__":
    stack = RunningStack()
    with httpx.Client(base_url=stack.url("gateway"), timeout=15) as http:
        print(measure(stack, register(http), rate=50, seconds=20))
