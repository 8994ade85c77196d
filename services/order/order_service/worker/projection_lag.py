"""How far behind the active worker is, as metrics: events not projected, errands open, the age of the oldest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, LiteralString

import structlog

from chassis.errors import RpcError
from chassis.telemetry.metrics import meter
from order_service.settings import Settings
from order_service.worker.leadership import Leadership

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_active = meter().create_gauge("worker.active", description="1 for the worker that is active, 0 for one that stands by")
_behind = meter().create_gauge("projection.lag.events", description="events a projection has not seen yet")
_open = meter().create_gauge("errands.open", description="errands owed to the User Service and not done yet")
_age = meter().create_gauge("errands.oldest.seconds", "s", "how long the oldest open errand has been owed")


async def follow(leadership: Leadership, database: Database, settings: Callable[[], Settings], instance: str) -> None:
    """Look and tell for ever. Only the active worker asks the database, so that nothing is told twice."""
    while True:
        _active.set(int(leadership.active), {"instance": instance[:8]})
        if leadership.active:
            try:
                await _look(database)
            except RpcError as error:
                log.warning("lag not measured", error=str(error))
        await asyncio.sleep(settings().lag_seconds)


async def _look(database: Database) -> None:
    async with database.connection() as connection:
        for row in await (await connection.execute(_BEHIND)).fetchall():
            _behind.set(row["behind"], {"projection": row["name"]})
        errands = await (await connection.execute(_OWED)).fetchone()
    if errands is not None:
        _open.set(errands["open"])
        _age.set(float(errands["oldest"]))


_BEHIND: LiteralString = """
    SELECT name, (SELECT count(*) FROM events WHERE notification_id > position) AS behind FROM projections"""
_OWED: LiteralString = """
    SELECT count(*) AS open, coalesce(extract(epoch FROM now() - min(owed_at)), 0) AS oldest FROM errands"""
