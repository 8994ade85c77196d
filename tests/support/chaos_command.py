"""`./justw chaos` for tests, and the measurement of its effect on callers."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import httpx
from support.stack_under_test import RunningStack, eventually

from stack.chaos import fault_state
from stack.commands import chaos


class Chaos:
    """The chaos command, on the stack under test."""

    def __init__(self, running: RunningStack) -> None:
        self.stack = running.stack

    def start(self, words: str, seconds: float | None = None) -> str:
        """Starts a fault; returns the output of the command."""
        with redirect_stdout(io.StringIO()) as output:
            chaos.chaos(self.stack, words.split(), str(seconds) if seconds else None)
        return output.getvalue()

    def off(self) -> list[str]:
        return chaos.off(self.stack)

    def active(self) -> list[str]:
        return chaos.active(self.stack)

    def runner(self) -> int:
        """The process id of the runner of the only fault."""
        (only,) = fault_state.states(self.stack)
        pid = fault_state.runner(self.stack, only.id).pid()
        assert pid is not None
        return pid

    def wait_until_over(self, seconds: float) -> None:
        """Returns once no fault is recorded."""
        eventually("every fault is over", lambda: not self.active(), seconds)


def timed(call: Callable[[], httpx.Response]) -> tuple[int, float]:
    """Status and seconds of a call; status 0 means no reply."""
    began = time.monotonic()
    try:
        status = call().status_code
    except httpx.TransportError:
        status = 0
    return status, time.monotonic() - began


def quickest(call: Callable[[], httpx.Response], times: int = 3) -> float:
    """Seconds of the quickest of some calls."""
    return min(timed(call)[1] for _ in range(times))
