"""A lock of Postgres at which a trigger waits, so that a test decides when a statement or a commit goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from support.postgres.private_postgres import Postgres

LATCH = 42


@contextmanager
def held(postgres: Postgres, schema: str) -> Iterator[None]:
    """Who comes to the latch waits until the block ends."""
    with psycopg.connect(postgres.dsn(dbname=schema)) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LATCH,))
        yield


async def waiting(postgres: Postgres, kind: str = "advisory") -> int:
    """The session that waits for a lock of that kind, as soon as there is one."""
    async with asyncio.timeout(60):
        query = f"SELECT pid FROM pg_locks WHERE locktype = '{kind}' AND NOT granted"
        while not (found := await asyncio.to_thread(postgres.rows, query)):
            await asyncio.sleep(0.01)
    return int(found[0][0])
