"""Waits with a deadline for a condition, or retries an action while a server that it needs is starting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from stack.console import StackError

T = TypeVar("T")


def poll(condition: Callable[[], T], seconds: float, interval: float = 0.1) -> T:
    """Returns the first true value of `condition`, or its last value once `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() >= deadline:
            return value
        time.sleep(interval)


def wait_until(
    condition: Callable[[], T | None], seconds: float, failure: Callable[[], StackError], interval: float = 0.1
) -> T:
    """Returns the first true value of `condition`; raises the StackError of `failure` after `seconds`."""
    value = poll(condition, seconds, interval)
    if not value:
        raise failure()
    return value


def retry(action: Callable[[], T], seconds: float, may_retry: Callable[[Exception], bool], interval: float = 0.3) -> T:
    """Returns the result of `action`; repeats it while `may_retry` accepts its error and `seconds` have not passed."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except Exception as error:
            if not may_retry(error) or time.monotonic() >= deadline:
                raise
        time.sleep(interval)
