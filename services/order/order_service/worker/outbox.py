"""The transactional outbox: pending calls to the User Service, one entry for an event, retried until it succeeds.

Invariant: a claim expires, so the entries of a worker that dies are delayed but not lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, LiteralString, Protocol
from uuid import UUID, uuid5

from chassis.batching import Batcher

if TYPE_CHECKING:
    from chassis.postgres.database import Database

Kind = Literal["reserve", "release"]
ENTRY_KINDS: dict[str, Kind] = {"OrderPlaced": "reserve", "OrderCancelled": "release", "OrderRejected": "release"}
"""The kind of entry that an event type needs; other events need none. A rejected order releases too, because a late or
concurrent reservation must not hold its credit."""


@dataclass(frozen=True)
class OutboxEntry:
    """Reserves or releases credit for an order. `attempts` includes this one, `traceparent` is that of the event."""

    position: int
    order_id: UUID
    kind: Kind
    traceparent: str
    attempts: int

    @property
    def command_id(self) -> UUID:
        """The id of the command that this entry causes, the same at each attempt."""
        return uuid5(self.order_id, f"{self.kind} {self.position}")


class Outbox(Protocol):
    """Port: the pending entries."""

    async def claim(self, limit: int, seconds: float) -> list[OutboxEntry]:
        """Returns at most `limit` due entries, oldest first; no other worker can claim them for `seconds`."""

    async def take_over(self) -> int:
        """Makes entries due that former leaders have claimed, and returns their number."""

    async def complete(self, entry: OutboxEntry) -> None:
        """Removes an entry that has succeeded."""

    async def postpone(self, entry: OutboxEntry, seconds: float) -> None:
        """Makes an entry due again in `seconds`, unless it has been claimed again."""


_COMPLETED_AT_MOST = 500
_COMPLETE_SECONDS = 5.0


class PostgresOutbox:
    """Table `outbox`, which the projection of that name fills. Entries that succeed together are removed together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._completions: Batcher[int, None] = Batcher(self._remove, _COMPLETED_AT_MOST, _COMPLETE_SECONDS)

    async def claim(self, limit: int, seconds: float) -> list[OutboxEntry]:
        """See Outbox."""
        rows = await self._database.change(_CLAIM, (seconds, limit))
        return sorted((OutboxEntry(**row) for row in rows), key=lambda entry: entry.position)

    async def take_over(self) -> int:
        """See Outbox."""
        return len(await self._database.change(_TAKE_OVER))

    async def complete(self, entry: OutboxEntry) -> None:
        """See Outbox."""
        await self._completions.submit(entry.position)

    async def postpone(self, entry: OutboxEntry, seconds: float) -> None:
        """See Outbox."""
        await self._database.change(_POSTPONE, (seconds, entry.position, entry.attempts))

    async def _remove(self, positions: Sequence[int]) -> list[None]:
        await self._database.change(_COMPLETE, (list(positions),))
        return [None] * len(positions)


_CLAIM: LiteralString = """
    UPDATE outbox SET due_at = now() + make_interval(secs => %s), attempts = attempts + 1, claimed = true
    WHERE position IN (SELECT position FROM outbox WHERE due_at <= now()
                       ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED)
    RETURNING position, order_id, kind, traceparent, attempts"""
_COMPLETE: LiteralString = "DELETE FROM outbox WHERE position = ANY(%s) RETURNING position"
_TAKE_OVER: LiteralString = """
    UPDATE outbox SET due_at = now(), claimed = false WHERE claimed AND due_at > now() RETURNING position"""
# The number of attempts shows that nobody has claimed the entry since: a late statement must not end that claim.
_POSTPONE: LiteralString = """
    UPDATE outbox SET due_at = now() + make_interval(secs => %s), claimed = false
    WHERE position = %s AND attempts = %s RETURNING position"""


class MemoryOutbox:
    """Fake for unit tests. Its time does not pass: a postponed entry is due again after `pass_time`."""

    def __init__(self) -> None:
        self._due: dict[int, OutboxEntry] = {}
        self._later: dict[int, OutboxEntry] = {}
        self._positions = itertools.count(1)

    def add(self, order_id: UUID, kind: Kind, traceparent: str = "") -> None:
        """Adds an entry that is due."""
        position = next(self._positions)
        self._due[position] = OutboxEntry(position, order_id, kind, traceparent, 0)

    def pass_time(self) -> None:
        """Makes every pending entry due."""
        self._due |= self._later
        self._later = {}

    @property
    def pending(self) -> int:
        """The number of entries that are not complete."""
        return len(self._due) + len(self._later)

    async def claim(self, limit: int, seconds: float) -> list[OutboxEntry]:  # noqa: ARG002
        """See Outbox."""
        claimed = [replace(entry, attempts=entry.attempts + 1) for entry in list(self._due.values())[:limit]]
        for entry in claimed:
            del self._due[entry.position]
            self._later[entry.position] = entry
        return claimed

    async def take_over(self) -> int:
        """See Outbox."""
        taken = len(self._later)
        self.pass_time()
        return taken

    async def complete(self, entry: OutboxEntry) -> None:
        """See Outbox."""
        self._later.pop(entry.position, None)

    async def postpone(self, entry: OutboxEntry, seconds: float) -> None:
        """See Outbox."""
