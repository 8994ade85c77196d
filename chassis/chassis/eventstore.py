"""Streams of events with optimistic concurrency: their shape, and the store of unit tests beside the real one.

Invariant: a stream has versions 1, 2, 3 …; positions are handed out in commit order, so a reader never skips an event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from psycopg import Cursor

    from chassis.recorder import EventStore as EventStore  # noqa: PLC0414 - exported by __getattr__ below

Within = Callable[["Cursor[Any] | None", Sequence["RecordedEvent"], Mapping[str, Any]], None]
"""Writes rows of its own in the transaction of an append; the cursor is a sync one, None in the memory store."""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A fact. `data` is JSON; `meta` says when, by whom, by which command and in which trace.

    `schema` counts the shapes that events of this type have had.
    """

    stream: UUID
    version: int
    type: str
    data: Mapping[str, Any]
    meta: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


def to_state(event: RecordedEvent) -> bytes:
    """An event as it is stored beside stream, version and type. The id in it is never made twice."""
    state = {"id": uuid4().hex, "schema": event.schema, "data": event.data, "meta": event.meta}
    return json.dumps(state, separators=(",", ":")).encode()


def from_state(stream: UUID, version: int, kind: str, state: bytes) -> RecordedEvent:
    """The event that was stored; one without a schema is from before schemas were counted."""
    found = json.loads(state)
    return RecordedEvent(stream, version, kind, found["data"], found["meta"], found.get("schema", 1))


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


class MemoryEventStore:
    """The event store of unit tests; passes the same behaviour suite as the one on Postgres."""

    def __init__(self, within: Within | None = None) -> None:
        self._within = within
        self._log: list[RecordedEvent] = []
        self._grown = asyncio.Event()

    async def append(self, stream: UUID, expected_version: int, events: Sequence[RecordedEvent], **extra: Any) -> None:
        """See EventLog."""
        check_versions(stream, expected_version, events)
        if events and len(await self.read(stream)) != expected_version:
            raise VersionConflict(stream, expected_version)
        states = [to_state(event) for event in events]
        if extra and self._within:
            self._within(None, events, extra)
        self._log += [from_state(e.stream, e.version, e.type, s) for e, s in zip(events, states, strict=True)]
        self._grown.set()
        self._grown = asyncio.Event()

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
            grown = self._grown
            for found in await self.since(position):
                position = found[0]
                yield found
            if position >= len(self._log):
                await grown.wait()


def __getattr__(name: str) -> Any:
    if name == "EventStore":
        from chassis import recorder  # noqa: PLC0415 - 40 ms that domain tests and the gateway never need

        return recorder.EventStore
    raise AttributeError(name)
