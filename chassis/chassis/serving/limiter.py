"""How much a server takes on at once: a limit that grows while answers are quick and shrinks when they are not (AIMD).

Invariant: what is beyond the limit is refused before any work is done for it; the limit stays between its settings.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from pydantic import Field

from chassis.errors import RpcError
from chassis.settings import Section
from chassis.telemetry.metrics import meter

_FIRST = 4
_all: weakref.WeakSet[Limiter] = weakref.WeakSet()


class LimiterSettings(Section):
    """How far the limit of calls at once may move, and what moves it."""

    calls_at_least: int = Field(ge=1, le=100_000, description="the limit never gets lower")
    calls_at_most: int = Field(ge=1, le=100_000, description="the limit never gets higher")
    target_seconds: float = Field(gt=0, le=60, description="an answer that takes longer says: too much at once")
    shrink: float = Field(gt=0, lt=1, description="what is left of the limit after such an answer")
    retry_after_seconds: float = Field(gt=0, le=60, description="when one that was refused may come again")


@dataclass(slots=True, eq=False)
class Place:
    """One call that was taken on, since when, and beside how many others."""

    began: float
    beside: int
    given_back: bool = False


class Limiter:
    """`place = admit()`, and `release(place)` once the answer is on its way."""

    def __init__(
        self, name: str, settings: Callable[[], LimiterSettings], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.limit = float(min(settings().calls_at_most, _FIRST * settings().calls_at_least))
        self.taken = 0
        self.refused = 0
        self._settings = settings
        self._clock = clock
        self._shrunk_at = float("-inf")
        _all.add(self)

    def admit(self) -> Place:
        """Take a call on; raises RpcError(RESOURCE_EXHAUSTED, OVERLOADED), whose push-back forbids a retry."""
        settings = self._settings()
        self.limit = max(float(settings.calls_at_least), min(self.limit, float(settings.calls_at_most)))
        if self.taken >= int(self.limit):
            self.refused += 1
            trace.get_current_span().add_event("limiter.refused", {"limiter.name": self.name, "limit": self.limit})
            raise _overloaded(settings.retry_after_seconds)
        self.taken += 1
        return Place(self._clock(), self.taken)

    def release(self, place: Place, *, measured: bool = True) -> None:
        """Give the place back, once; `measured` unless the time it took says nothing about the load."""
        if place.given_back:
            return
        place.given_back = True
        self.taken -= 1
        if measured:
            self._learn(place, self._clock())

    def _learn(self, place: Place, now: float) -> None:
        settings = self._settings()
        if now - place.began <= settings.target_seconds:
            # Answers of a server that is half empty say nothing about how much more it could do.
            if place.beside * 2 >= self.limit:
                self.limit = min(settings.calls_at_most, self.limit + 1 / self.limit)
        elif place.began >= self._shrunk_at:
            # Calls that began before the limit last shrank tell of the same crowd again.
            self._shrunk_at = now
            self.limit = max(
                float(settings.calls_at_least), min(self.limit, max(place.beside, self.taken + 1)) * settings.shrink
            )


def _overloaded(seconds: float) -> RpcError:
    # A retry would be one more call for a server that has too many; whoever asked first decides when to come again.
    return RpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "there is more to do than can be done now",
        retry_after=seconds, pushback=-1.0,
    )  # fmt: skip


def _gauge(name: str, read: Callable[[Limiter], float], description: str) -> None:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read(limiter), {"limiter.name": limiter.name}) for limiter in list(_all)]

    meter().create_observable_gauge(name, [observe], "1", description)


_gauge("limiter.limit", lambda limiter: limiter.limit, "calls that may be under way at once")
_gauge("limiter.taken", lambda limiter: limiter.taken, "calls under way")
_gauge("limiter.refused", lambda limiter: limiter.refused, "calls refused since the start")
