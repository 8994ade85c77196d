"""Circuit breaker for asyncio: pybreaker's states, storage and listeners behind an adapter modelled on gobreaker v2.

Invariant: admitted under a lock, run outside it; a half-open breaker has at most `half_open_max` probes out, and a
result that arrives after the state it was admitted in has ended, or a cancelled call, counts for nothing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, TypeVar

import grpc
import pybreaker
import structlog
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from pydantic import Field

from chassis.calls.rolling_window import Window
from chassis.errors import RpcError
from chassis.settings import Section
from chassis.telemetry.metrics import meter

log = structlog.get_logger(__name__)

T = TypeVar("T")
State = Literal["closed", "open", "half-open"]
GAUGE: dict[State, int] = {"closed": 0, "half-open": 1, "open": 2}
_FAULTS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_all: weakref.WeakSet[AsyncBreaker] = weakref.WeakSet()


class BreakerSettings(Section):
    """When a breaker opens, and how it finds out that it may close. A slow probe is a failed one."""

    window_seconds: float = Field(gt=0, le=300, description="how far back the ratios look")
    minimum_calls: int = Field(gt=0, le=100_000, description="calls in the window before a ratio means anything")
    failure_ratio: float = Field(gt=0, le=1, description="share of failed calls that opens it")
    slow_seconds: float = Field(gt=0, le=300, description="a call that takes longer counts as slow")
    slow_ratio: float = Field(gt=0, le=1, description="share of slow calls that opens it")
    failures_in_a_row: int = Field(gt=0, le=100_000, description="failures without a success between them that open it")
    reset_seconds: float = Field(gt=0, le=60, description="time it stays open before it probes")
    half_open_max: int = Field(gt=0, le=1000, description="probes at the same time, and successes that close it")


class BreakerOpen(Exception):  # noqa: N818 - a state of the breaker, not a defect
    """The call was refused without being made; trying again makes sense after `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"breaker {name} is open")
        self.name = name
        self.retry_after = retry_after


def is_fault(error: BaseException) -> bool:
    """Whether an error says the callee is broken. A refusal, or load it sheds (RESOURCE_EXHAUSTED), says it lives."""
    return error.code in _FAULTS if isinstance(error, RpcError) else isinstance(error, Exception)


class AsyncBreaker:
    """Guards calls to one thing that can break; `limits()` is read at each call, so settings are live."""

    def __init__(
        self,
        name: str,
        limits: Callable[[], BreakerSettings],
        is_failure: Callable[[BaseException], bool] = is_fault,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.is_failure = is_failure
        self.state: State = "closed"
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._generation = 0
        self._probes = 0
        self._proved = 0
        self._in_a_row = 0
        self._opened_at = 0.0
        self._window = Window()
        self._machine = pybreaker.CircuitBreaker(name=name, listeners=[_Transitions(self)])
        _all.add(self)

    async def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """The result of `func()`, whose failures are counted; raises BreakerOpen when it may not be made."""
        generation, began = self.admit(), self._clock()
        try:
            result = await func()
        except Exception as error:
            self.settle(generation, failed=self.is_failure(error), seconds=self._clock() - began)
            raise
        except BaseException:
            self.settle(generation, failed=None)
            raise
        self.settle(generation, failed=False, seconds=self._clock() - began)
        return result

    def admit(self) -> int:
        """Allow one call, which must be settled with the generation returned; raises BreakerOpen."""
        if self.state == "closed":
            return self._generation
        with self._lock:
            limits = self._limits()
            if self.state == "open":
                wait = self._opened_at + limits.reset_seconds - self._clock()
                if wait > 0:
                    raise BreakerOpen(self.name, wait)
                self._machine.half_open()
            if self._probes + self._proved >= limits.half_open_max:
                raise BreakerOpen(self.name, min(1.0, limits.reset_seconds))
            self._probes += 1
            return self._generation

    def settle(self, generation: int, failed: bool | None, seconds: float = 0.0) -> None:
        """Count the outcome of an admitted call; None (cancelled) only gives its place back."""
        with self._lock:
            if generation != self._generation:
                return
            if self.state == "closed":
                if failed is not None:
                    self._count(failed, seconds)
            else:
                self._probes -= 1
                if failed is not None:
                    self._prove(failed, seconds)

    def probe_soon(self) -> None:
        """Let an open breaker probe at the next call: there is news of what it guards."""
        with self._lock:
            self._opened_at = float("-inf")

    def _count(self, failed: bool, seconds: float) -> None:
        limits = self._limits()
        slow = seconds > limits.slow_seconds
        window = self._window
        window.add(self._clock(), limits.window_seconds, failed, slow)
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if (failed or slow) and (self._in_a_row >= limits.failures_in_a_row or _too_many(window, limits)):
            self._machine.open()

    def _prove(self, failed: bool, seconds: float) -> None:
        limits = self._limits()
        if failed or seconds > limits.slow_seconds:
            self._machine.open()
            return
        self._proved += 1
        if self._proved >= limits.half_open_max:
            self._machine.close()

    def _changed(self, before: str, after: State) -> None:
        self.state = after
        self._generation += 1
        self._probes = self._proved = self._in_a_row = 0
        self._window.clear()
        self._opened_at = self._clock()
        log.warning("breaker changed", breaker=self.name, before=before, after=after)
        trace.get_current_span().add_event(
            "breaker.changed", {"breaker.name": self.name, "breaker.before": before, "breaker.after": after}
        )
        _transitions.add(1, {"breaker.name": self.name, "breaker.state": after})


def _too_many(window: Window, limits: BreakerSettings) -> bool:
    return window.calls >= limits.minimum_calls and (
        window.failures >= limits.failure_ratio * window.calls or window.slow >= limits.slow_ratio * window.calls
    )


class _Transitions(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: AsyncBreaker) -> None:
        self._breaker = weakref.proxy(breaker)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:  # noqa: ARG002
        self._breaker._changed(old_state.name, new_state.name)


def _observations(_options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(GAUGE[breaker.state], {"breaker.name": breaker.name}) for breaker in list(_all)]


meter().create_observable_gauge("breaker.state", [_observations], description="0 closed, 1 half-open, 2 open")
_transitions = meter().create_counter("breaker.transitions", description="changes of breaker state")
