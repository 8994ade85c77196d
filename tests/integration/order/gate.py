"""A Postgres lock for which a trigger waits, so that a test decides when a statement or a commit continues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from support.postgres.private_postgres import Postgres

GATE = 42


@contextmanager
def closed(postgres: Postgres, schema: str) -> Iterator[None]:
    """Keeps the gate closed: sessions wait at it until the block ends."""
    with psycopg.connect(postgres.dsn(dbname=schema)) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield


async def waiting_session(postgres: Postgres, kind: str = "advisory") -> int:
    """Returns the process id of the first session that waits for a lock of that kind."""
    async with asyncio.timeout(60):
        query = f"SELECT pid FROM pg_locks WHERE locktype = '{kind}' AND NOT granted"
        while not (found := await asyncio.to_thread(postgres.rows, query)):
            await asyncio.sleep(0.01)
    return int(found[0][0])
