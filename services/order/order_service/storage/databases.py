"""The database and the event store in it, opened the same way by both entries."""

from __future__ import annotations

from chassis.postgres.database import Database
from chassis.postgres.eventstore import EventStore
from chassis.process import Process
from order_service.settings import Settings
from order_service.storage import idempotency_keys


async def open_storage(process: Process[Settings]) -> tuple[Database, EventStore]:
    """Both, with every table in place."""
    database = await Database.open(process, name="order_service")
    await database.migrate("chassis")
    await database.migrate("order_service")
    return database, await EventStore.open(database, within=idempotency_keys.keep)
