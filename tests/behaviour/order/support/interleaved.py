"""An event log that gives way before and after each step, so that tasks on it overtake each other as drawn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent


class Interleaved:
    """The log behind it; `luck` decides how often the other tasks come first."""

    def __init__(self, log: EventLog, luck: random.Random) -> None:
        self._log = log
        self.luck = luck

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        await self._give_way()
        await self._log.append(stream, expected_version, events, **extra)
        await self._give_way()

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        await self._give_way()
        found = await self._log.read(stream, after)
        await self._give_way()
        return found

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        return await self._log.since(position, limit)

    async def head(self) -> int:
        return await self._log.head()

    def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        return self._log.subscribe(position)

    async def _give_way(self) -> None:
        for _ in range(self.luck.randrange(3)):
            await asyncio.sleep(0)
