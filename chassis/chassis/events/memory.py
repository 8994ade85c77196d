"""In-memory event store for unit tests; it passes the same behaviour tests as the store on Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from chassis.events.port import VersionConflict, WriteRows, check_versions
from chassis.events.record import RecordedEvent, from_state, to_state


class MemoryEventStore:
    """Keeps events in a list. `write_rows` gets None instead of a transaction."""

    def __init__(self, write_rows: WriteRows | None = None) -> None:
        self._write_rows = write_rows
        self._log: list[RecordedEvent] = []
        self._appended = asyncio.Event()

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """See EventLog."""
        check_versions(stream, expected_version, events)
        if events and len(await self.read(stream)) != expected_version:
            raise VersionConflict(stream, expected_version)
        states = [to_state(event) for event in events]
        if extra and self._write_rows:
            self._write_rows(None, events, extra)
        self._log += [from_state(e.stream, e.version, e.type, s) for e, s in zip(events, states, strict=True)]
        self._appended.set()
        self._appended = asyncio.Event()

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """See EventLog."""
        return [event for event in self._log if event.stream == stream and event.version > after]

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """See EventLog."""
        return list(enumerate(self._log, 1))[position : position + limit]

    async def head(self) -> int:
        """See EventLog."""
        return len(self._log)

    async def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """See EventLog."""
        while True:
            appended = self._appended
            for found in await self.since(position):
                position = found[0]
                yield found
            if position >= len(self._log):
                await appended.wait()
