"""Measures when an event is visible in lists, under 50 orders a second for 20 seconds; exit 1 if p99 is over 100 ms.

The bound holds on a machine that runs nothing else.
"""

from __future__ import annotations

import sys

import httpx
from support.stack_under_test import RunningStack
from support.traffic.api_user import register
from support.traffic.projection_lag import TARGET_RATE, measure

if __name__ == "__main__":
    stack = RunningStack()
    with httpx.Client(base_url=stack.url("gateway"), timeout=15) as http:
        found = measure(stack, register(http), rate=TARGET_RATE, seconds=20)
    print(found)
    sys.exit(0 if found.reaches_the_target else 1)
