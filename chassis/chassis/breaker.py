"""Circuit breaker for asyncio: pybreaker's states, storage and listeners behind an adapter modelled on gobreaker v2.

Invariant: admitted under a lock, run outside it; a half-open breaker has at most `half_open_max` probes out, and a
result that arrives after the state it was admitted in has ended, or a cancelled call, counts for nothing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, Protocol, TypeVar, cast

import grpc
import pybreaker
import structlog
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation

from chassis import telemetry
from chassis.errors import RpcError

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


class Limits(Protocol):
    """The live knobs of a breaker."""

    @property
    def fail_max(self) -> int:
        """Failures in a row that open it."""

    @property
    def reset_seconds(self) -> float:
        """Seconds it stays open before it lets a probe through."""

    @property
    def half_open_max(self) -> int:
        """Probes at the same time, and successes in a row that close it."""


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
    """Guards calls to one thing that can break; `limits()` is read at each call, so knobs are live."""

    def __init__(
        self,
        name: str,
        limits: Callable[[], Limits],
        is_failure: Callable[[BaseException], bool] = is_fault,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.is_failure = is_failure
        self._limits = limits
        self._clock = clock
        self._lock = threading.RLock()
        self._generation = 0
        self._probes = 0
        self._opened_at = 0.0
        self._machine = pybreaker.CircuitBreaker(
            name=name, listeners=[_Transitions(self)], throw_new_error_on_trip=False
        )
        _all.add(self)

    @property
    def state(self) -> State:
        """Where it stands; an open breaker turns half-open at the first call after its time."""
        return cast(State, self._machine.current_state)

    async def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """The result of `func()`, whose failures are counted; raises BreakerOpen when it may not be made."""
        generation = self.admit()
        try:
            result = await func()
        except Exception as error:
            self.settle(generation, failed=self.is_failure(error))
            raise
        except BaseException:
            self.settle(generation, failed=None)
            raise
        self.settle(generation, failed=False)
        return result

    def admit(self) -> int:
        """Allow one call, which must be settled with the generation returned; raises BreakerOpen."""
        with self._lock:
            limits = self._limits()
            if self.state == pybreaker.STATE_OPEN:
                wait = self._opened_at + limits.reset_seconds - self._clock()
                if wait > 0:
                    raise BreakerOpen(self.name, wait)
                self._machine.half_open()
            if self.state == pybreaker.STATE_HALF_OPEN:
                if self._probes + self._machine.success_counter >= limits.half_open_max:
                    raise BreakerOpen(self.name, min(1.0, limits.reset_seconds))
                self._probes += 1
            return self._generation

    def settle(self, generation: int, failed: bool | None) -> None:
        """Count the outcome of an admitted call; None (cancelled) only gives its place back."""
        with self._lock:
            if generation != self._generation:
                return
            if self.state == pybreaker.STATE_HALF_OPEN:
                self._probes -= 1
            if failed is not None:
                self._count(failed)

    def probe_soon(self) -> None:
        """Let an open breaker probe at the next call: there is news of what it guards."""
        with self._lock:
            self._opened_at = float("-inf")

    def _count(self, failed: bool) -> None:
        limits = self._limits()
        self._machine.fail_max = limits.fail_max
        self._machine.success_threshold = limits.half_open_max
        try:
            self._machine.call(_outcome, failed)
        except _FailedError:
            return

    def _changed(self, before: str, after: str) -> None:
        self._generation += 1
        self._probes = 0
        self._opened_at = self._clock()
        log.warning("breaker changed", breaker=self.name, before=before, after=after)
        trace.get_current_span().add_event(
            "breaker.changed", {"breaker.name": self.name, "breaker.before": before, "breaker.after": after}
        )
        _transitions.add(1, {"breaker.name": self.name, "breaker.state": after})


class _Transitions(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: AsyncBreaker) -> None:
        self._breaker = weakref.proxy(breaker)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:  # noqa: ARG002
        self._breaker._changed(old_state.name, new_state.name)


class _FailedError(Exception):
    """Stands for the real error, which pybreaker would raise again from a place it never was."""


def _outcome(failed: bool) -> None:
    if failed:
        raise _FailedError


def _observations(_options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(GAUGE[breaker.state], {"breaker.name": breaker.name}) for breaker in list(_all)]


telemetry.meter().create_observable_gauge("breaker.state", [_observations], description="0 closed, 1 half-open, 2 open")
_transitions = telemetry.meter().create_counter("breaker.transitions", description="changes of breaker state")
