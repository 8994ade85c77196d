"""Measures how far the worker lags: events not yet projected, pending outbox entries, and the age of the oldest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, LiteralString

import structlog

from chassis.errors import RpcError
from chassis.settings import Live
from chassis.telemetry.metrics import meter
from order_service.settings import Settings
from order_service.worker.leadership import Leadership

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_leader = meter().create_gauge("worker.leader", description="1 for the worker that leads, 0 for the others")
_events = meter().create_gauge("projection.lag.events", description="events that a projection has not applied yet")
_pending = meter().create_gauge("outbox.pending", description="outbox entries that are not complete")
_oldest = meter().create_gauge("outbox.oldest.seconds", "s", "age of the oldest pending outbox entry")


async def run(leadership: Leadership, database: Database, settings: Live[Settings], instance: str) -> None:
    """Measures in intervals without end. Only the leader queries the database, so nothing is reported twice."""
    while True:
        _leader.set(int(leadership.is_leader), {"instance": instance[:8]})
        if leadership.is_leader:
            try:
                await _measure(database)
            except RpcError as error:
                log.warning("projection lag not measured", error=str(error))
        await asyncio.sleep(settings.value.lag_interval_seconds)


async def _measure(database: Database) -> None:
    for row in await database.fetch(_BEHIND):
        _events.set(row["behind"], {"projection": row["name"]})
    for row in await database.fetch(_OUTBOX):
        _pending.set(row["pending"])
        _oldest.set(float(row["oldest"]))


_BEHIND: LiteralString = """
    SELECT name, (SELECT count(*) FROM events WHERE notification_id > position) AS behind FROM projections"""
_OUTBOX: LiteralString = """
    SELECT count(*) AS pending, coalesce(extract(epoch FROM now() - min(created_at)), 0) AS oldest FROM outbox"""
