"""Adaptive concurrency limit of a server (AIMD): it grows while calls are fast and shrinks while they are slow.

Invariant: a call beyond the limit is rejected before any work is done for it; the limit stays between its settings.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import grpc
from opentelemetry import trace
from pydantic import Field

from chassis.deadline import remaining
from chassis.errors import RpcError
from chassis.settings import Live, Section
from chassis.telemetry.metrics import LiveGauges

_INITIAL_FACTOR = 4
_RESERVE = 0.25
_NEARLY_OVER = 0.1


class LimiterSettings(Section):
    """The bounds of the concurrency limit, and how it moves between them."""

    calls_at_least: int = Field(ge=1, le=100_000, description="lower bound of the limit")
    calls_at_most: int = Field(ge=1, le=100_000, description="upper bound of the limit")
    target_seconds: float = Field(gt=0, le=60, description="a slower answer shows that the limit is too high")
    shrink: float = Field(gt=0, lt=1, description="factor on the limit after a slow answer")
    retry_after_seconds: float = Field(gt=0, le=60, description="retry time in the error of a rejected call")


class Outcome(Enum):
    """How a call ended, which decides whether its duration is a measure of the load. Each server uses the same rule."""

    ANSWERED = auto()
    DEADLINE = auto()
    """Ended by its deadline. It would have taken longer: it can show that the limit is too high, not too low."""
    OTHER = auto()
    """Another error, or cancelled by its caller before the deadline: no measure."""


@dataclass(slots=True, eq=False)
class Permit:
    """The right to work on one call: its start, and the number of calls in progress at that time."""

    started: float
    concurrency: int
    released: bool = False


class Limiter:
    """Issues permits up to the limit: `permit = acquire()` before the work, `release(permit, outcome)` after it."""

    def __init__(self, name: str, settings: Live[LimiterSettings], clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.limit = float(min(settings.value.calls_at_most, _INITIAL_FACTOR * settings.value.calls_at_least))
        self.in_use = 0
        self.rejected = 0
        self._settings = settings
        self._clock = clock
        self._shrunk_at = float("-inf")
        _gauges.add(self)

    def acquire(self, *, urgent: bool = False) -> Permit:
        """Returns a permit; raises RpcError(RESOURCE_EXHAUSTED, OVERLOADED), which forbids automatic retries.

        An urgent call, which makes room for others, may also use a reserve of a quarter above the limit.
        """
        settings, limit = self._settings.value, self.limit
        if not settings.calls_at_least <= limit <= settings.calls_at_most:
            limit = self.limit = max(float(settings.calls_at_least), min(limit, float(settings.calls_at_most)))
        if self.in_use >= int(limit) + (math.ceil(limit * _RESERVE) if urgent else 0):
            self.rejected += 1
            trace.get_current_span().add_event("limiter.rejected", {"limiter.name": self.name, "limit": limit})
            raise _overloaded(settings.retry_after_seconds)
        self.in_use += 1
        return Permit(self._clock(), self.in_use)

    def release(self, permit: Permit, outcome: Outcome) -> None:
        """Releases a permit and adjusts the limit to the duration of the call; has no effect when repeated."""
        if permit.released:
            return
        permit.released = True
        self.in_use -= 1
        if outcome is not Outcome.OTHER:
            self._adjust(permit, outcome, self._clock())

    def release_failed(self, permit: Permit, error: BaseException) -> None:
        """Releases the permit of a call that has ended with an error; call it within the deadline of that call."""
        cut = _ended_by_deadline(error, self._clock() - permit.started)
        self.release(permit, Outcome.DEADLINE if cut else Outcome.OTHER)

    def _adjust(self, permit: Permit, outcome: Outcome, now: float) -> None:
        settings = self._settings.value
        if now - permit.started <= settings.target_seconds:
            # A quick answer at less than half of the limit does not show that a higher limit would do.
            if outcome is Outcome.ANSWERED and permit.concurrency * 2 >= self.limit:
                self.limit = min(settings.calls_at_most, self.limit + 1 / self.limit)
        elif permit.started >= self._shrunk_at:
            # A call that started before the limit last shrank is part of the overload already acted on.
            self._shrunk_at = now
            highest = min(self.limit, max(permit.concurrency, self.in_use + 1))
            self.limit = max(float(settings.calls_at_least), highest * settings.shrink)


def _ended_by_deadline(error: BaseException, seconds: float) -> bool:
    """True if the deadline ended a call after so many seconds, however the handler noticed it."""
    if isinstance(error, RpcError):
        return error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    left = remaining()
    # The timer of the caller may cancel the call shortly before ours.
    cut = left is not None and left <= (seconds + left) * _NEARLY_OVER
    return cut and isinstance(error, TimeoutError | asyncio.CancelledError)


def _overloaded(seconds: float) -> RpcError:
    # A retry would add load; the negative push-back leaves the decision to the first caller in the chain.
    return RpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "the server is at its concurrency limit",
        retry_after=seconds, pushback=-1.0,
    )  # fmt: skip


_gauges: LiveGauges[Limiter] = LiveGauges("limiter.name", lambda limiter: limiter.name)
_gauges.gauge("limiter.limit", lambda limiter: limiter.limit, "the current concurrency limit")
_gauges.gauge("limiter.in_use", lambda limiter: limiter.in_use, "calls in progress")
_gauges.gauge("limiter.rejected", lambda limiter: limiter.rejected, "calls rejected since the start")
