"""Elects the leader among the workers: the one whose term in table `leader_terms` has not ended.

Invariant: a term ends by itself, so a leader that is killed, stopped or cut off has a successor within one term. Its
work ends before the successor starts. Rows stay correct even with two leaders, because projections are locked and
outbox entries may be processed twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, LiteralString

import structlog

from chassis.errors import RpcError
from chassis.settings import Live
from order_service.settings import Settings

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_NAME = "worker"
_RENEWALS_PER_TERM = 5
# The last part of a term in the database is no longer part of ours: work in progress has this time to end.
_ENDING_SHARE = 0.1


class Leadership:
    """A candidate. After a kill and a restart in place, an instance continues its own term."""

    def __init__(self, database: Database, instance: str, settings: Live[Settings]) -> None:
        self._database = database
        self._instance = instance
        self._settings = settings
        self._term_ends_at = 0.0
        self._term_end: asyncio.TimerHandle | None = None
        self._elected = asyncio.Event()
        self._lost = asyncio.Event()

    @property
    def is_leader(self) -> bool:
        """True while the term of this worker lasts."""
        return time.monotonic() < self._term_ends_at

    async def campaign(self, stopping: asyncio.Event) -> None:
        """Tries to get or to renew a term, again and again until `stopping` is set."""
        while not stopping.is_set():
            await self._try_for_term()
            pause = asyncio.create_task(stopping.wait())
            await asyncio.wait({pause}, timeout=self._settings.value.leadership_term_seconds / _RENEWALS_PER_TERM)
            pause.cancel()
        self._step_down()

    async def while_leader(self, stopping: asyncio.Event, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Runs `work(ending)` in each term until `stopping` is set.

        `ending` is set with `stopping`, so that the work in progress is finished, and when the term is lost. Work that
        has not returned before the database ends the term is cancelled.
        """
        while not stopping.is_set():
            await _first(self._elected.wait(), stopping.wait())
            if not stopping.is_set():
                await self._lead(stopping, work)

    async def _lead(self, stopping: asyncio.Event, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        ending, lost = asyncio.Event(), self._lost
        working = asyncio.ensure_future(work(ending))
        try:
            await _first(working, lost.wait(), stopping.wait())
            ending.set()
            await _first(working, lost.wait())
            await asyncio.wait({working}, timeout=self._settings.value.leadership_term_seconds * _ENDING_SHARE)
        finally:
            if working.cancel():
                log.warning("work in progress cancelled")
            await asyncio.wait({working})
        if not working.cancelled():
            working.result()

    async def resign(self) -> None:
        """Ends the term now, so that another worker need not wait for its end."""
        self._step_down()
        try:
            await self._database.change(_END_TERM, (_NAME, self._instance))
        except RpcError as error:
            log.warning("leadership not given up, it expires on its own", error=str(error))

    async def _try_for_term(self) -> None:
        seconds = self._settings.value.leadership_term_seconds
        # Measured before the statement: the database starts the term later, so ours never ends after its own.
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(seconds / 2):
                won = await self._take_term(seconds)
        except (RpcError, TimeoutError) as error:
            log.warning("leadership not renewed", error=str(error) or type(error).__name__)
        else:
            self._term_ends_at = started_at + seconds * (1 - _ENDING_SHARE) if won else 0.0
        if self.is_leader:
            self._start_leading()
        else:
            self._step_down()

    async def _take_term(self, seconds: float) -> bool:
        return bool(await self._database.change(_TAKE_TERM, (_NAME, self._instance, seconds)))

    def _start_leading(self) -> None:
        self._stop_timer()
        left = self._term_ends_at - time.monotonic()
        self._term_end = asyncio.get_running_loop().call_later(left, self._step_down)
        if not self._elected.is_set():
            log.info("elected as leader")
            self._lost = asyncio.Event()
            self._elected.set()

    def _stop_timer(self) -> None:
        if self._term_end is not None:
            self._term_end.cancel()

    def _step_down(self) -> None:
        self._stop_timer()
        self._term_ends_at = 0.0
        if self._elected.is_set():
            log.info("no longer leader")
            self._elected.clear()
            self._lost.set()


async def _first(*waiting: Awaitable[object]) -> None:
    """Waits until the first of them is done, and cancels the others except those that are tasks of the caller."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each, task in zip(waiting, tasks, strict=True):
            if each is not task:
                task.cancel()


_TAKE_TERM: LiteralString = """
    INSERT INTO leader_terms AS current (name, leader, ends_at)
        VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s))
    ON CONFLICT (name) DO UPDATE SET leader = excluded.leader, ends_at = excluded.ends_at
        WHERE current.leader = excluded.leader OR current.ends_at <= clock_timestamp()
    RETURNING leader"""
_END_TERM: LiteralString = "DELETE FROM leader_terms WHERE name = %s AND leader = %s RETURNING name"
