"""`./justw chaos` as a test uses it, and how its faults are felt from outside."""

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
    """The command, on the stack under test."""

    def __init__(self, running: RunningStack) -> None:
        self.stack = running.stack

    def order(self, words: str, seconds: float | None = None) -> str:
        """What the command says about a fault that acts now."""
        with redirect_stdout(io.StringIO()) as said:
            chaos.chaos(self.stack, words.split(), str(seconds) if seconds else None)
        return said.getvalue()

    def off(self) -> list[str]:
        return chaos.off(self.stack)

    def active(self) -> list[str]:
        return chaos.active(self.stack)

    def keeper(self) -> int:
        """The process id of the keeper of the only fault."""
        (only,) = fault_state.states(self.stack)
        pid = fault_state.runner(self.stack, only.id).pid()
        assert pid is not None
        return pid

    def over(self, seconds: float) -> None:
        """Returns once no fault is on record any more."""
        eventually("every fault is over", lambda: not self.active(), seconds)


def timed(call: Callable[[], httpx.Response]) -> tuple[int, float]:
    """Status and seconds of a call; status 0 when the other side does not answer it."""
    began = time.monotonic()
    try:
        status = call().status_code
    except httpx.TransportError:
        status = 0
    return status, time.monotonic() - began


def quickest(call: Callable[[], httpx.Response], times: int = 3) -> float:
    """Seconds of the quickest of some calls: what it takes at least."""
    return min(timed(call)[1] for _ in range(times))
