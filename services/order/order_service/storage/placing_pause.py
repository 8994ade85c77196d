"""Stores until when no order is placed: the port, its Postgres adapter, and its fake for unit tests.

Invariant: a pause ends by itself. A worker that dies during a pause stops the placing of orders for a moment only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, LiteralString, Protocol

if TYPE_CHECKING:
    from chassis.postgres.database import Database

_NAME = "backlog"


class PlacingPause(Protocol):
    """Port: the worker extends and ends the pause, the service reads it."""

    async def extend(self, seconds: float) -> None:
        """Lets the pause last `seconds` from now."""

    async def end(self) -> None:
        """Ends the pause now."""

    async def left(self) -> float:
        """Returns the seconds until the pause ends, 0 or less without one."""


class PostgresPlacingPause:
    """Table `placing_pauses`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def extend(self, seconds: float) -> None:
        """See PlacingPause."""
        await self._database.change(_EXTEND, (_NAME, seconds))

    async def end(self) -> None:
        """See PlacingPause."""
        await self._database.change(_END, (_NAME,))

    async def left(self) -> float:
        """See PlacingPause."""
        rows = await self._database.fetch(_LEFT, (_NAME,))
        return float(rows[0]["seconds"]) if rows else 0.0


_EXTEND: LiteralString = """
    INSERT INTO placing_pauses (name, ends_at) VALUES (%s, clock_timestamp() + make_interval(secs => %s))
    ON CONFLICT (name) DO UPDATE SET ends_at = excluded.ends_at RETURNING name"""
_END: LiteralString = "DELETE FROM placing_pauses WHERE name = %s RETURNING name"
_LEFT: LiteralString = """
    SELECT extract(epoch FROM ends_at - clock_timestamp()) AS seconds FROM placing_pauses WHERE name = %s"""


class MemoryPlacingPause:
    """Fake for unit tests."""

    def __init__(self) -> None:
        self._ends_at = float("-inf")

    async def extend(self, seconds: float) -> None:
        """See PlacingPause."""
        self._ends_at = time.monotonic() + seconds

    async def end(self) -> None:
        """See PlacingPause."""
        self._ends_at = float("-inf")

    async def left(self) -> float:
        """See PlacingPause."""
        return self._ends_at - time.monotonic()
