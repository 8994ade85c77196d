"""Whether and when a failed call is made again: full jitter, the server's push-back, and a budget for the channel.

Invariant: a call that may have had an effect is repeated only where the contract says so, and over time retries are no
more than the budget's share of the calls. What never left this process costs no budget: no server is the busier for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from pydantic import Field

from chassis.calls.transport import Method, NeverSent
from chassis.errors import RpcError, deadline_exceeded
from chassis.platform.discovery import Endpoint
from chassis.settings import Section


class RetrySettings(Section):
    """How often and how fast a failed call is made again."""

    attempts: int = Field(ge=1, le=10, description="most times one call is made")
    attempt_seconds: float = Field(gt=0, le=60, description="longest wait for one try while another could be made")
    first_seconds: float = Field(gt=0, le=10, description="the first pause is random between 0 and this, then doubles")
    longest_seconds: float = Field(gt=0, le=60, description="longest pause")
    budget_ratio: float = Field(ge=0, le=1, description="retries each call pays for")
    budget_per_second: float = Field(ge=0, le=1000, description="retries that are free each second")
    budget_saved: int = Field(ge=1, le=10_000, description="most retries saved up for a burst")


class RetryBudget:
    """A token bucket: calls fill it a little, each retry takes one. `spent` counts what was taken."""

    def __init__(self, settings: Callable[[], RetrySettings], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._filled_at = clock()
        self._saved = float(settings().budget_saved)
        self.spent = 0
        self.refused = 0

    @property
    def left(self) -> float:
        """Retries that could be made now."""
        settings, now = self._settings(), self._clock()
        free = (now - self._filled_at) * settings.budget_per_second
        self._filled_at = now
        self._saved = min(self._saved + free, float(settings.budget_saved))
        return self._saved

    def earn(self) -> None:
        """A new call was made."""
        self._saved += self._settings().budget_ratio

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self.left < 1:
            self.refused += 1
            return False
        self._saved -= 1
        self.spent += 1
        return True


class Retries:
    """The retries of one call, and the instances it has tried."""

    def __init__(self, settings: RetrySettings, budget: RetryBudget, method: Method) -> None:
        self._settings = settings
        self._budget = budget
        self._method = method
        self._made = 1
        self._claimed = False
        self.tried: set[Endpoint] = set()

    @asynccontextmanager
    async def patience(self, left: float, spare: bool, unusual: float) -> AsyncIterator[None]:
        """Give the try in the block up (DEADLINE_EXCEEDED) when it takes unusually long and may be made elsewhere.

        Not before the budget has paid for that: who cannot try again waits for the whole of `left`.
        """
        seconds = max(self._settings.attempt_seconds, unusual)
        if seconds >= left or not (self._method.repeatable and spare and self._made < self._settings.attempts):
            yield
            return
        loop = asyncio.get_running_loop()

        def give_up() -> None:
            self._claimed = self._budget.spend()
            if self._claimed:
                limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                timer = loop.call_later(seconds, give_up)
                try:
                    yield
                finally:
                    timer.cancel()
        except TimeoutError:
            raise deadline_exceeded("another instance is asked") from None

    def pause(self, error: RpcError, left: float, spare: bool) -> float | None:
        """Seconds until the next try, or None: `left` is the time of the call, `spare` an instance not yet tried."""
        if not self.tried or self._made >= self._settings.attempts or not self._allowed(error, left):
            return None
        moved_on = spare and isinstance(error, NeverSent) and error.code is grpc.StatusCode.UNAVAILABLE
        pause = 0.0 if moved_on else self._pause(error)
        if pause >= left or not (moved_on or self._claimed or self._budget.spend()):
            return None
        self._claimed = False
        self._made += 1
        return pause

    def _allowed(self, error: RpcError, left: float) -> bool:
        if error.pushback is not None and error.pushback < 0:
            return False
        if isinstance(error, NeverSent):
            return True
        cut_off = error.code is grpc.StatusCode.UNAVAILABLE and error.reason == "UNAVAILABLE"
        out_of_patience = error.code is grpc.StatusCode.DEADLINE_EXCEEDED and left > 0
        return self._method.repeatable and (cut_off or out_of_patience)

    def _pause(self, error: RpcError) -> float:
        if error.pushback is not None:
            return error.pushback
        longest = min(self._settings.longest_seconds, self._settings.first_seconds * 2 ** (self._made - 1))
        return max(error.retry_after or 0.0, random.uniform(0, longest))  # noqa: S311
