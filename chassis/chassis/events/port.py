"""The interface of the event store: streams of events with optimistic concurrency.

Invariant: a stream has versions 1, 2, 3 …; positions are assigned in commit order, so a reader never skips an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, LiteralString, Protocol
from uuid import UUID

from chassis.events.record import RecordedEvent


class Transaction(Protocol):
    """The transaction of an append."""

    def execute(self, query: LiteralString, params: Sequence[object]) -> None:
        """Adds a statement; it is executed later, before the events are inserted, and its result cannot be read."""


WriteRows = Callable[[Transaction | None, Sequence[RecordedEvent], Mapping[str, Any]], None]
"""Writes further rows in the transaction of an append, which is None in the memory store."""


class VersionConflict(Exception):  # noqa: N818 - the word of the field
    """Another writer appended to the stream first: read it again and decide again."""

    def __init__(self, stream: UUID, expected: int) -> None:
        super().__init__(f"stream {stream} is not at version {expected}")
        self.stream = stream
        self.expected = expected


class AlreadyRecorded(Exception):  # noqa: N818 - an answer, not a defect
    """A row written with the events exists already; `constraint` is the name of the violated unique constraint."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class EventLog(Protocol):
    """The operations of an event store, in memory or on Postgres."""

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """Appends events after `expected_version` (0 for a new stream) and passes `extra` to the store's `WriteRows`.

        All or nothing. Raises VersionConflict, AlreadyRecorded (either, when both apply), or RpcError(UNAVAILABLE)
        when the database is unavailable.
        """

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """Returns the events of a stream with a version above `after`, oldest first; empty for an unknown stream."""

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """Returns at most `limit` events of all streams after a position, in commit order."""

    async def head(self) -> int:
        """Returns the position of the last event; 0 when there is none."""

    def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """Yields every event after a position, then waits for later ones; it never ends by itself."""


def check_versions(stream: UUID, expected_version: int, events: Sequence[RecordedEvent]) -> None:
    """Raises ValueError for events of another stream, or with versions that do not follow `expected_version`."""
    for version, event in enumerate(events, expected_version + 1):
        if event.stream != stream or event.version != version:
            raise ValueError(f"{event.type}: expected version {version} of {stream}, got {event.version}")
