"""Places an order in a process of its own, so that a test can kill it at a chosen moment."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from behaviour.order.support.service import ADA, TEA, shipped
from support.postgres.database_under_test import database_under_test
from support.postgres.private_postgres import Postgres

from chassis.postgres.event_store import EventStore
from chassis.settings import Live
from order_service.commands import Commands
from order_service.storage import idempotency_keys
from order_service.storage.idempotency_keys import PostgresIdempotencyKeys


@contextmanager
def placing(postgres: Postgres, schema: str, key: str) -> Iterator[BaseProcess]:
    """Yields the process, and kills it at the end; its exit code is 0 only if the order was placed."""
    process = multiprocessing.get_context("spawn").Process(target=_place, args=(postgres.port, schema, key))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(20)


def _place(port: int, schema: str, key: str) -> None:
    async def place() -> None:
        async with database_under_test(Postgres(Path(), port), schema) as server:
            database = server.database
            store = await EventStore.open(database, write_rows=idempotency_keys.insert_key)
            commands = Commands(store, PostgresIdempotencyKeys(database), Live(shipped()))
            await commands.place_order(ADA, key, "EUR", [TEA])

    asyncio.run(place())
