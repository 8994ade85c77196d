"""Retries (gRFC A6): decides which failed calls are repeated and when, with full jitter, push-back and a retry budget.

Invariant: a call that may have had an effect is repeated only if the contract marks its method as idempotent. Retries
are at most the budgeted share of the calls over time. A retry of a call that no server has processed is free, because
it adds no load: one that could not be sent goes to any other instance, one that was shed only to an instance with
capacity, even if the server forbids a retry, which it can only do for itself.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import grpc

from chassis.calls.client_settings import ClientSettings
from chassis.calls.transport import Method, NotProcessed, OutOfTime, UnaryCall
from chassis.errors import RpcError, deadline_exceeded
from chassis.platform.discovery import Endpoint
from chassis.settings import Live


@dataclass(frozen=True)
class RetryRules:
    """Constants of retries; a parameter only so that tests can vary them.

    The backoff is random between 0 and a bound that starts at `first_seconds` and doubles up to `longest_seconds`:
    well below any deadline. `budget_size` lets a handful of retries through after a quiet time, when few calls have
    earned any.
    """

    first_seconds: float = 0.05
    longest_seconds: float = 0.5
    budget_size: int = 10


RETRY_RULES = RetryRules()
# With less time left, an attempt is not made: the answer could not arrive in time.
LEAST_SECONDS = 0.005
# The timers of an event loop may run out this much too early.
_TIMER_SECONDS = 0.001


class RetryBudget:
    """Token bucket: each call deposits a fraction of a token, each retry withdraws one token."""

    def __init__(self, settings: Live[ClientSettings], size: int = RETRY_RULES.budget_size) -> None:
        self._settings = settings
        self._size = float(size)
        self.available = self._size
        self.withdrawn = 0
        self.denied = 0

    def deposit(self) -> None:
        """Adds the share of a token that a new call earns."""
        self.available = min(self._size, self.available + self._settings.value.retry_budget_ratio)

    def withdraw(self) -> bool:
        """Takes the token for one retry; False if there is none."""
        if self.available < 1:
            self.denied += 1
            return False
        self.available -= 1
        self.withdrawn += 1
        return True


class Retries:
    """The retries of one call, and the instances it has tried; `attempts` replaces the number of the settings."""

    __slots__ = ("_attempts", "_budget", "_made", "_rules", "_settings", "method", "token_taken", "tried")

    def __init__(
        self,
        settings: ClientSettings,
        budget: RetryBudget,
        method: Method,
        rules: RetryRules,
        attempts: int | None = None,
    ) -> None:
        self._settings = settings
        self._attempts = settings.attempts if attempts is None else attempts
        self._budget = budget
        self.method = method
        self._rules = rules
        self._made = 1
        self.token_taken = False
        self.tried: set[Endpoint] = set()

    def attempt_seconds(self, left: float, slow_after: float) -> float | None:
        """Returns the seconds after which the next attempt is unusually slow and may be made elsewhere.

        None if it is not repeated, or may take all the time that is `left`.
        """
        if not self.method.idempotent or self._made >= self._attempts:
            return None
        seconds = max(self._settings.attempt_seconds, slow_after)
        return seconds if seconds < left else None

    def take_token(self) -> bool:
        """Takes the token for the next attempt, so that this one may be cancelled; False if the budget is empty."""
        self.token_taken = self._budget.withdraw()
        return self.token_taken

    def backoff(self, error: RpcError, left: float, has_alternative: bool) -> float | None:
        """Returns the seconds until the next attempt, or None if there is none in the time that is `left`."""
        if not self.tried or self._made >= self._attempts:
            return None
        transparent = isinstance(error, NotProcessed) and has_alternative
        if not transparent and not self._is_retryable(error):
            return None
        seconds = 0.0 if transparent else self._jittered(error)
        if seconds + LEAST_SECONDS > left or not (transparent or self.token_taken or self._budget.withdraw()):
            return None
        self.token_taken = False
        self._made += 1
        return seconds

    def _is_retryable(self, error: RpcError) -> bool:
        if isinstance(error, OutOfTime) or (error.pushback is not None and error.pushback < 0):
            return False
        if isinstance(error, NotProcessed):
            return True
        connection_lost = error.code is grpc.StatusCode.UNAVAILABLE and error.reason == "UNAVAILABLE"
        attempt_timed_out = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return self.method.idempotent and (connection_lost or attempt_timed_out)

    def _jittered(self, error: RpcError) -> float:
        if error.pushback is not None:
            return error.pushback
        bound = min(self._rules.longest_seconds, self._rules.first_seconds * 2 ** (self._made - 1))
        return max(error.retry_after or 0.0, random.uniform(0, bound))  # noqa: S311


class AttemptTimer:
    """Cancels attempts that take too long; one timer of the event loop serves all attempts.

    Nearly all attempts end long before, so the timer runs out about once in the time of an attempt, not at each.
    """

    def __init__(self) -> None:
        self._running: dict[Retries, tuple[float, UnaryCall]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._checks_at = math.inf

    async def response(self, call: UnaryCall, retries: Retries, seconds: float) -> Any:
        """Returns the response of an attempt, but cancels it (DEADLINE_EXCEEDED) if it takes longer than `seconds`.

        It does so only if a retry token is available; otherwise the attempt may take all the time that is left.
        """
        ends_at = time.monotonic() + seconds
        self._running[retries] = ends_at, call
        if ends_at < self._checks_at:
            self._check_at(ends_at)
        try:
            return await call
        except RpcError:
            if retries.token_taken:
                raise deadline_exceeded("the attempt took too long, another instance is tried") from None
            raise
        finally:
            self._running.pop(retries, None)

    def _check_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._checks_at = moment
        # An empty context: the timer serves all attempts, so it must not keep the deadline and the span of one.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(moment - time.monotonic(), self._check, context=Context())

    def _check(self) -> None:
        now, self._timer, self._checks_at = time.monotonic(), None, math.inf
        for retries, (ends_at, call) in list(self._running.items()):
            if ends_at <= now + _TIMER_SECONDS:
                del self._running[retries]
                # An answer that has arrived meanwhile counts.
                if not call.done() and retries.take_token():
                    call.cancel()
        if self._running:
            self._check_at(min(ends_at for ends_at, _ in self._running.values()))
