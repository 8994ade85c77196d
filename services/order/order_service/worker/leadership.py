"""Which worker is active: the one whose term has not ended. The others stand by and look again in time.

Invariant: a term ends by itself, so a worker that is killed, stopped or cut off has a successor within one. Rows stay
right by the locks of projections and errands that may be repeated, not by this: two active workers harm nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, LiteralString

import structlog

from chassis.errors import RpcError
from order_service.settings import Settings

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_NAME = "worker"
_LOOKS_IN_A_TERM = 5


class Leadership:
    """One candidate; `holder` is its instance, which after a kill and a start in place goes on with its own term."""

    def __init__(self, database: Database, holder: str, settings: Callable[[], Settings]) -> None:
        self._database = database
        self._holder = holder
        self._settings = settings
        self._ends_at = 0.0
        self._begun = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def active(self) -> bool:
        """Whether this worker is the active one now."""
        return time.monotonic() < self._ends_at

    async def stand(self, stopping: asyncio.Event) -> None:
        """Get a term, or a longer one, again and again until told to stop."""
        while not stopping.is_set():
            await self._look()
            pause = asyncio.create_task(stopping.wait())
            await asyncio.wait({pause}, timeout=self._settings().term_seconds / _LOOKS_IN_A_TERM)
            pause.cancel()
        self._end()

    async def during(self, stopping: asyncio.Event, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Run `work(over)` in each term; it has to return soon after `over` is set."""
        while not stopping.is_set():
            waiting = [asyncio.create_task(event.wait()) for event in (self._begun, stopping)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if not stopping.is_set():
                await work(self._over)

    async def resign(self) -> None:
        """Leave the place to another worker, now and not when the term ends."""
        self._end()
        try:
            async with self._database.connection() as connection:
                await connection.execute(_RESIGN, (_NAME, self._holder))
        except RpcError as error:
            log.warning("the term ends by itself", error=str(error))

    async def _look(self) -> None:
        seconds = self._settings().term_seconds
        # Counted from before the question: the database's clock starts later, so ours never ends later than its own.
        asked = time.monotonic()
        try:
            async with asyncio.timeout(seconds / 2):
                won = await self._won(seconds)
        except (RpcError, TimeoutError) as error:
            log.warning("no word about the term", error=str(error) or type(error).__name__)
        else:
            self._ends_at = asked + seconds if won else 0.0
        if self.active:
            self._begin()
        else:
            self._end()

    async def _won(self, seconds: float) -> bool:
        async with self._database.connection() as connection:
            found = await connection.execute(_TAKE, (_NAME, self._holder, seconds))
            return await found.fetchone() is not None

    def _begin(self) -> None:
        if not self._begun.is_set():
            log.info("active")
            self._over = asyncio.Event()
            self._begun.set()

    def _end(self) -> None:
        self._ends_at = 0.0
        if self._begun.is_set():
            log.info("standing by")
            self._begun.clear()
            self._over.set()


_TAKE: LiteralString = """
    INSERT INTO terms AS now (name, holder, ends_at) VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends_at = excluded.ends_at
        WHERE now.holder = excluded.holder OR now.ends_at <= clock_timestamp()
    RETURNING holder"""
_RESIGN: LiteralString = "DELETE FROM terms WHERE name = %s AND holder = %s"
