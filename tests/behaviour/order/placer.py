"""An instance that places one order and ends: in a process of its own, so that it can be killed at a named moment."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from behaviour.order.service import ADA, TEA, shipped
from embedded.postgres import Postgres
from embedded.world import started

from chassis.postgres.eventstore import EventStore
from order_service import keys
from order_service.commands import Commands
from order_service.keys import PostgresKeys


@contextmanager
def placing(postgres: Postgres, schema: str, key: str) -> Iterator[BaseProcess]:
    """The process, which is no more when the block ends; its exit code is 0 only if it got its answer."""
    process = multiprocessing.get_context("spawn").Process(target=_place, args=(postgres.port, schema, key))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(20)


def _place(port: int, schema: str, key: str) -> None:
    async def place() -> None:
        async with started(Postgres(Path(), port), schema) as world:
            store = await EventStore.open(world.database, within=keys.keep)
            commands = Commands(store, PostgresKeys(world.database), shipped)
            await commands.place_order(ADA, key, "EUR", [TEA])

    asyncio.run(place())
