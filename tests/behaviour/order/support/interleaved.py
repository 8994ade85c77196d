"""An event log that yields to other tasks around each step, so that tasks overtake each other at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent


class Interleaved:
    """Wraps a log; `rng` decides how often the other tasks run first."""

    def __init__(self, log: EventLog, rng: random.Random) -> None:
        self._log = log
        self.rng = rng

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        await self._yield_to_others()
        await self._log.append(stream, expected_version, events, **extra)
        await self._yield_to_others()

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        await self._yield_to_others()
        found = await self._log.read(stream, after)
        await self._yield_to_others()
        return found

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        return await self._log.since(position, limit)

    async def head(self) -> int:
        return await self._log.head()

    def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        return self._log.subscribe(position)

    async def _yield_to_others(self) -> None:
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
