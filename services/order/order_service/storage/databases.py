"""Opens the database and its event store, in the same way for the service, the worker and the operations."""

from __future__ import annotations

from chassis.postgres.database import Database
from chassis.postgres.event_store import EventStore
from chassis.process import Process
from order_service.settings import Settings
from order_service.storage import idempotency_keys


async def open_storage(process: Process[Settings]) -> tuple[Database, EventStore]:
    """Returns both after all migrations are applied."""
    database = await Database.open(process, name="order_service")
    await database.migrate("chassis", "order_service")
    return database, await EventStore.open(database, write_rows=idempotency_keys.insert_key)
