"""Circuit breaker for asyncio: a pybreaker circuit behind an adapter modelled on gobreaker v2.

Invariant: calls are admitted under a lock and run outside of it. A half-open circuit never has more probes in progress
than successes it needs to close. A cancelled call is not counted, nor one whose caller ran out of time, nor a result
that arrives after the state has changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar, cast

import pybreaker
import structlog
from opentelemetry import trace

from chassis.calls.client_settings import ClientSettings
from chassis.calls.rolling_window import RollingWindow
from chassis.calls.transport import FAULT_CODES, OutOfTime
from chassis.errors import RpcError
from chassis.settings import Live
from chassis.telemetry.metrics import LiveGauges, meter

log = structlog.get_logger(__name__)

T = TypeVar("T")
State = Literal["closed", "open", "half-open"]
Excluded = type[Exception] | Callable[[Any], bool]
GAUGE: dict[State, int] = {"closed": 0, "half-open": 1, "open": 2}
_CLOSED: State = "closed"
_transitions = meter().create_counter("breaker.transitions", description="changes of breaker state")


@dataclass(frozen=True)
class BreakerRules:
    """Constants of the breaker; a parameter only so that tests can vary them.

    The window is short, so that the breaker opens within a second or two of a fault. The ratios apply from
    `minimum_calls` on; `failures_in_a_row` opens the breaker where calls are too rare for that. A success that took
    `slow_share` of the deadline is slow: under a little more load it would be a timeout.
    """

    window_seconds: float = 1.5
    minimum_calls: int = 5
    slow_share: float = 5 / 6
    slow_ratio: float = 0.8
    failures_in_a_row: int = 20
    half_open_max: int = 1


BREAKER_RULES = BreakerRules()


class BreakerOpen(pybreaker.CircuitBreakerError):
    """The call was rejected without being made; a retry makes sense after `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"breaker {name} is open")
        self.name = name
        self.retry_after = retry_after


def is_business_error(error: BaseException) -> bool:
    """True for an error that a working service returns: a rejected request, or load that it sheds."""
    return isinstance(error, RpcError) and error.code not in FAULT_CODES


class BreakerStorage(pybreaker.CircuitBreakerStorage):
    """Stores the state of a breaker: the fields of pybreaker's storage, and those that the adapter adds.

    Each change of state starts a generation, to which only calls admitted in it belong. `opened_monotonic` is the time
    of opening on a clock that is never set back.
    """

    counter: int = 0
    success_counter: int = 0

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__("memory")
        self.generation = 0
        self.probes = 0
        self.window = RollingWindow()
        self.opened_monotonic = float("-inf")
        self._clock = clock
        self._state = pybreaker.STATE_CLOSED
        self._opened_at: datetime | None = None

    @property
    def state(self) -> str:
        """Returns closed, open or half-open; a new value starts a generation."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self.generation += 1
        self.probes = 0
        self.window.clear()

    @property
    def opened_at(self) -> datetime | None:
        """Returns the date of the last opening."""
        return self._opened_at

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        self._opened_at = datetime
        self.opened_monotonic = self._clock()

    def increment_counter(self) -> None:
        """Counts one more failure in a row."""
        self.counter += 1

    def reset_counter(self) -> None:
        """Sets the number of failures in a row to 0."""
        self.counter = 0

    def increment_success_counter(self) -> None:
        """Counts one more successful probe."""
        self.success_counter += 1

    def reset_success_counter(self) -> None:
        """Sets the number of successful probes to 0."""
        self.success_counter = 0


class TransitionTelemetry(pybreaker.CircuitBreakerListener):
    """Logs, traces and counts each change of state."""

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        """See pybreaker.CircuitBreakerListener."""
        before, after = old_state.name, new_state.name
        log.warning("breaker changed state", breaker=cb.name, before=before, after=after)
        attributes = {"breaker.name": cb.name, "breaker.before": before, "breaker.after": after}
        trace.get_current_span().add_event("breaker.changed", attributes)
        _transitions.add(1, {"breaker.name": cb.name, "breaker.state": after})


LISTENERS: tuple[pybreaker.CircuitBreakerListener, ...] = (TransitionTelemetry(),)


class AsyncBreaker:
    """Guards the calls to one service.

    `circuit` is the pybreaker circuit: its storage is the only state, its listeners are notified of each counted
    call and each change of state, and its excluded exceptions count as success. It may be opened and closed by hand.
    """

    def __init__(
        self,
        name: str,
        settings: Live[ClientSettings],
        *,
        rules: BreakerRules = BREAKER_RULES,
        listeners: Sequence[pybreaker.CircuitBreakerListener] = LISTENERS,
        excluded_exceptions: Iterable[Excluded] = (is_business_error,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._settings = settings
        self._rules = rules
        self._clock = clock
        self._lock = threading.RLock()
        self._storage = BreakerStorage(clock)
        self.circuit = pybreaker.CircuitBreaker(
            fail_max=rules.failures_in_a_row,
            success_threshold=rules.half_open_max,
            exclude=excluded_exceptions,
            listeners=listeners,
            state_storage=self._storage,
            name=name,
        )
        self._apply(settings.value)
        self._stop_following = settings.on_change(self._apply)
        _breakers.add(self)

    @property
    def state(self) -> State:
        """The state in pybreaker's storage."""
        return cast(State, self._storage.state)

    async def call(self, func: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Returns the result of `func(*args)` and counts it; raises BreakerOpen without calling it while open."""
        generation, began = self.admit(), self._clock()
        try:
            for listener in self.circuit.listeners:
                listener.before_call(self.circuit, func, *args)
            result = await func(*args)
        except OutOfTime:
            self.cancel(generation)
            raise
        except Exception as error:
            self.record(generation, error, self._clock() - began)
            raise
        except BaseException:
            self.cancel(generation)
            raise
        self.record(generation, None, self._clock() - began)
        return result

    def admit(self) -> int:
        """Admits one call, which must end with `record` or `cancel` of the returned generation; raises BreakerOpen."""
        if self._storage.state == _CLOSED:
            return self._storage.generation
        with self._lock:
            if self._settings.value.failure_ratio >= 1:
                self.circuit.close()
                return self._storage.generation
            if self.state == "open":
                wait = self._storage.opened_monotonic + self.circuit.reset_timeout - self._clock()
                if wait > 0:
                    raise BreakerOpen(self.name, wait)
                self.circuit.half_open()
            if self.circuit.success_counter >= self.circuit.success_threshold:
                # The threshold was lowered meanwhile to what has been reached.
                self.circuit.close()
                return self._storage.generation
            if self._storage.probes + self.circuit.success_counter >= self.circuit.success_threshold:
                raise BreakerOpen(self.name, min(1.0, self.circuit.reset_timeout))
            self._storage.probes += 1
            return self._storage.generation

    def record(self, generation: int, error: Exception | None, seconds: float = 0.0) -> None:
        """Counts the result of an admitted call that took `seconds`."""
        failure = error if error is not None and self.circuit.is_system_error(error) else None
        listeners: tuple[pybreaker.CircuitBreakerListener, ...] = self.circuit.listeners
        with self._lock:
            if generation != self._storage.generation:
                return
            if failure is not None:
                self._storage.increment_counter()
                for listener in listeners:
                    listener.failure(self.circuit, failure)
                self._decide(seconds, failed=True)
            else:
                self._storage.reset_counter()
                self._decide(seconds, failed=False)
                for listener in listeners:
                    listener.success(self.circuit)

    def cancel(self, generation: int) -> None:
        """Ends an admitted call that has no result; a probe makes room for the next one."""
        with self._lock:
            if generation == self._storage.generation and self.state != _CLOSED:
                self._storage.probes -= 1

    def allow_probe(self) -> None:
        """Lets an open breaker probe at the next call, for example because an instance has appeared."""
        self._storage.opened_monotonic = float("-inf")

    def close(self) -> None:
        """Stops following the settings, and leaves the metrics."""
        self._stop_following()
        _breakers.remove(self)

    def _decide(self, seconds: float, *, failed: bool) -> None:
        storage, slow = self._storage, seconds > self._slow_seconds
        if storage.state == _CLOSED:
            storage.window.add(self._clock(), self._rules.window_seconds, failed, slow)
            if (failed or slow) and self._limit_exceeded():
                self.circuit.open()
            return
        storage.probes -= 1
        if failed or slow:
            self.circuit.open()
            return
        storage.increment_success_counter()
        if self.circuit.success_counter >= self.circuit.success_threshold:
            self.circuit.close()

    def _limit_exceeded(self) -> bool:
        ratio, rules, window = self._settings.value.failure_ratio, self._rules, self._storage.window
        if ratio >= 1:
            return False
        if self.circuit.fail_counter >= self.circuit.fail_max:
            return True
        return window.calls >= rules.minimum_calls and (
            window.failures >= ratio * window.calls or window.slow >= rules.slow_ratio * window.calls
        )

    def _apply(self, settings: ClientSettings) -> None:
        self.circuit.reset_timeout = settings.reset_seconds
        self._slow_seconds = self._rules.slow_share * settings.deadline_seconds


_breakers: LiveGauges[AsyncBreaker] = LiveGauges("breaker.name", lambda breaker: breaker.name)
_breakers.gauge("breaker.state", lambda breaker: GAUGE[breaker.state], "0 closed, 1 half-open, 2 open")
