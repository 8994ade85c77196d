"""Rejects new orders during a pause of placing, which the worker sets while it is behind.

Invariant: placing an order waits for no query. The pause is read beside the calls, at most every tenth of a second, and
only while orders are placed. If it cannot be read, orders are accepted.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import Context

import grpc
import structlog

from chassis.errors import RpcError
from chassis.settings import Live
from chassis.telemetry.metrics import Counts
from order_service.settings import Settings
from order_service.storage.placing_pause import PlacingPause

log = structlog.get_logger(__name__)

_READ_SECONDS = 0.1
_rejected = Counts("order.placing.rejected", "1", "orders rejected because the worker is behind").series({})


class PlacingAdmission:
    """The pause, as of the last time that it was read."""

    def __init__(self, pause: PlacingPause, settings: Live[Settings]) -> None:
        self._pause = pause
        self._settings = settings
        self._ends_at = self._read_again_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raises RpcError(RESOURCE_EXHAUSTED, BACKLOG) during a pause.

        It has a reason of its own, because this instance is not overloaded: callers must not leave it out.
        """
        now = time.monotonic()
        if now >= self._read_again_at and (self._reading is None or self._reading.done()):
            # An empty context: it has neither the deadline nor the trace of this call.
            self._reading = asyncio.create_task(self._read(), context=Context())
        if now < self._ends_at:
            _rejected.add(1)
            raise RpcError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKLOG", "orders are placed faster than they are completed",
                retry_after=self._settings.value.limiter.retry_after_seconds, pushback=-1.0,
            )  # fmt: skip

    async def _read(self) -> None:
        try:
            self._ends_at = time.monotonic() + await self._pause.left()
        except RpcError as error:
            log.warning("pause of placing not read, orders are accepted", error=str(error))
            self._ends_at = float("-inf")
        except Exception:
            log.exception("pause of placing not read, orders are accepted")
            self._ends_at = float("-inf")
        finally:
            self._read_again_at = time.monotonic() + _READ_SECONDS
