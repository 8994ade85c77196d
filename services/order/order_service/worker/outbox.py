"""What is owed to the User Service: a table of errands, one for each event that needs one, each tried until done.

Invariant: an errand is claimed for a time and not for ever, so the end of a worker delays it and does not lose it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol
from uuid import UUID, uuid5

if TYPE_CHECKING:
    from chassis.postgres.database import Database

Kind = Literal["reserve", "release"]
KINDS: dict[str, Kind] = {"OrderPlaced": "reserve", "OrderCancelled": "release", "OrderRejected": "release"}
"""Which event needs which errand; the others need none. A rejected order gives back too: a reservation that was still
on its way, or asked for by a second worker, must not hold credit for it later."""


@dataclass(frozen=True)
class Errand:
    """Reserve or release credit for an order; `tries` counts this one, `traceparent` is that of the event."""

    position: int
    order_id: UUID
    kind: Kind
    traceparent: str
    tries: int

    @property
    def command_id(self) -> UUID:
        """The id of the command it gives, the same at each try."""
        return uuid5(self.order_id, f"{self.kind} {self.position}")


class Errands(Protocol):
    """The errands that are open."""

    async def claim(self, limit: int, seconds: float) -> list[Errand]:
        """Take at most `limit` that are due; nobody else gets them for so many seconds."""

    async def take_over(self) -> int:
        """Make due what is claimed by workers that are no longer active; how many errands that are."""

    async def finish(self, errand: Errand) -> None:
        """It is done."""

    async def postpone(self, errand: Errand, seconds: float) -> None:
        """It is due again after so many seconds."""


class PostgresErrands:
    """Table `errands`, filled by the projection of that name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, limit: int, seconds: float) -> list[Errand]:
        """See Errands."""
        async with self._database.connection() as connection:
            rows = await (await connection.execute(_CLAIM, (seconds, limit))).fetchall()
        return [Errand(**row) for row in rows]

    async def take_over(self) -> int:
        """See Errands."""
        async with self._database.connection() as connection:
            return (await connection.execute(_TAKE_OVER)).rowcount

    async def finish(self, errand: Errand) -> None:
        """See Errands."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM errands WHERE position = %s", (errand.position,))

    async def postpone(self, errand: Errand, seconds: float) -> None:
        """See Errands."""
        async with self._database.connection() as connection:
            await connection.execute(_POSTPONE, (seconds, errand.position))


_CLAIM = """UPDATE errands SET due_at = now() + make_interval(secs => %s), tries = tries + 1, claimed = true
            WHERE position IN (SELECT position FROM errands WHERE due_at <= now()
                               ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED)
            RETURNING position, order_id, kind, traceparent, tries"""
_TAKE_OVER = "UPDATE errands SET due_at = now(), claimed = false WHERE claimed AND due_at > now()"
_POSTPONE = "UPDATE errands SET due_at = now() + make_interval(secs => %s), claimed = false WHERE position = %s"


class MemoryErrands:
    """The errands of unit tests. Time stands still: what is postponed is due again after `pass_time`."""

    def __init__(self) -> None:
        self._due: dict[int, Errand] = {}
        self._later: dict[int, Errand] = {}
        self._positions = itertools.count(1)

    def add(self, order_id: UUID, kind: Kind, traceparent: str = "") -> None:
        """Owe an errand."""
        position = next(self._positions)
        self._due[position] = Errand(position, order_id, kind, traceparent, 0)

    def pass_time(self) -> None:
        """Everything open is due."""
        self._due |= self._later
        self._later = {}

    @property
    def open(self) -> int:
        return len(self._due) + len(self._later)

    async def claim(self, limit: int, seconds: float) -> list[Errand]:  # noqa: ARG002
        """See Errands."""
        claimed = [replace(errand, tries=errand.tries + 1) for errand in list(self._due.values())[:limit]]
        for errand in claimed:
            del self._due[errand.position]
            self._later[errand.position] = errand
        return claimed

    async def take_over(self) -> int:
        """See Errands."""
        taken = len(self._later)
        self.pass_time()
        return taken

    async def finish(self, errand: Errand) -> None:
        """See Errands."""
        self._later.pop(errand.position, None)

    async def postpone(self, errand: Errand, seconds: float) -> None:
        """See Errands."""
