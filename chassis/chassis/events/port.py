"""The event store as services use it: streams of events with optimistic concurrency.

Invariant: a stream has versions 1, 2, 3 …; positions are assigned in commit order, so a reader never skips an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from chassis.events.record import RecordedEvent

if TYPE_CHECKING:
    from psycopg import Cursor

Within = Callable[["Cursor[Any] | None", Sequence["RecordedEvent"], Mapping[str, Any]], None]
"""Writes rows of its own in the transaction of an append; the cursor is a sync one, None in the memory store."""


class VersionConflict(Exception):  # noqa: N818 - the word of the field
    """Someone else appended to the stream first: read it again and decide again."""

    def __init__(self, stream: UUID, expected: int) -> None:
        super().__init__(f"stream {stream} is not at version {expected}")
        self.stream = stream
        self.expected = expected


class AlreadyRecorded(Exception):  # noqa: N818 - an answer, not a defect
    """A row written beside the events exists already; `constraint` names the unique constraint that says so."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class EventLog(Protocol):
    """What a service uses of an event store; both stores here are one."""

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """Add events after `expected_version` (0 for a new stream), with `extra` handed to the `within` callback.

        All or nothing. Raises VersionConflict, AlreadyRecorded (either, when both apply), or RpcError(UNAVAILABLE)
        when the database is away.
        """

    async def read(self, stream: UUID, after: int = 0) -> list[RecordedEvent]:
        """The events of a stream with a version above `after`, oldest first; empty for an unknown stream."""

    async def since(self, position: int, limit: int = 500) -> list[tuple[int, RecordedEvent]]:
        """At most `limit` events of all streams after a position, in commit order."""

    async def head(self) -> int:
        """The last position; 0 when there is no event."""

    def subscribe(self, position: int) -> AsyncIterator[tuple[int, RecordedEvent]]:
        """Every event after a position, those to come too; it never ends by itself."""


def check_versions(stream: UUID, expected_version: int, events: Sequence[RecordedEvent]) -> None:
    """Refuse a programming error: events of another stream, or versions that do not follow `expected_version`."""
    for version, event in enumerate(events, expected_version + 1):
        if event.stream != stream or event.version != version:
            raise ValueError(f"{event.type}: expected version {version} of {stream}, got {event.version}")
