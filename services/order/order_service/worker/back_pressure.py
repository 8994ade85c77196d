"""Pauses the placing of orders while more are placed than the process manager completes.

The rule: placing pauses while, for more than `backlog_seconds` without a break, more outbox entries have been due than
could be processed at the same time, and most attempts succeed. So a worker that makes no progress, because the User
Service is unavailable, pauses nothing: orders are accepted as pending. A new leader, and one whose attempts succeed
again, gets some seconds more for what has become due before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from chassis import wakeup
from chassis.errors import RpcError
from chassis.settings import Live
from order_service.settings import Settings
from order_service.storage.placing_pause import PlacingPause

log = structlog.get_logger(__name__)

# A pause is extended a few times before it would end.
_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_IDLE_SECONDS = 60.0
_CATCH_UP_SECONDS = 5.0
_PROGRESS_SHARE = 0.5
_SMOOTHING = 0.05


class BackPressure:
    """Applies the rule to what the process manager reports; `clock` is in seconds."""

    def __init__(self, settings: Live[Settings], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._behind_since: float | None = None
        self._counts_from = float("-inf")
        self._succeeded_at = float("-inf")
        self._success_share = 1.0
        self._fails_since = float("inf")
        self._changed = asyncio.Event()

    def claimed(self, *, all_due: bool) -> None:
        """Reports a claim, and whether it had every entry that was due."""
        if all_due:
            self._counts_from = float("-inf")
        if all_due and self._behind_since is not None:
            self._behind_since = None
            self._changed.set()
        elif not all_due and self._behind_since is None:
            self._behind_since = max(self._clock(), self._counts_from)
            self._changed.set()

    def attempted(self, *, succeeded: bool) -> None:
        """Reports the end of an attempt."""
        before, now = self._success_share, self._clock()
        self._success_share += _SMOOTHING * (succeeded - before)
        if succeeded:
            self._succeeded_at = now
        if self._success_share <= _PROGRESS_SHARE < before:
            self._fails_since = now
        if before <= _PROGRESS_SHARE < self._success_share:
            # What was accepted meanwhile takes about as long as the outage.
            self._allow_to_catch_up(_CATCH_UP_SECONDS + now - self._fails_since)

    @property
    def pauses(self) -> bool:
        """True while the rule holds."""
        longest, now = self._settings.value.backlog_seconds, self._clock()
        behind = self._behind_since is not None and now - self._behind_since > longest
        return behind and now - self._succeeded_at <= longest and self._success_share > _PROGRESS_SHARE

    def begin(self) -> None:
        """Reports that this worker leads from now on."""
        self._behind_since = None
        self._allow_to_catch_up(_CATCH_UP_SECONDS)

    def _allow_to_catch_up(self, seconds: float) -> None:
        self._counts_from = self._clock() + seconds
        if self._behind_since is not None:
            self._behind_since = self._counts_from

    async def run(self, stopping: asyncio.Event, pause: PlacingPause) -> None:
        """Extends the pause while the rule holds and then ends it, until `stopping` is set."""
        paused = False
        with wakeup.set_when(stopping, self._changed):
            while not stopping.is_set():
                self._changed.clear()
                try:
                    paused = await self._apply(pause, paused)
                except RpcError as error:
                    log.warning("pause of placing not changed, it ends on its own", error=str(error))
                waits = _LOOK_SECONDS if paused or self._behind_since is not None else _IDLE_SECONDS
                await wakeup.wait(self._changed, waits)

    async def _apply(self, pause: PlacingPause, paused: bool) -> bool:
        pauses = self.pauses
        if pauses:
            await pause.extend(_PAUSE_SECONDS)
        elif paused:
            await pause.end()
        if pauses != paused:
            log.warning("placing of orders paused, the worker is behind" if pauses else "placing of orders continues")
        return pauses
