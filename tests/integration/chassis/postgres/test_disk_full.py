"""A really full disk and the simulated one of `./justw chaos disk full` have the same effect: writes fail with the same
error, reads work, and writes work again without a restart.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import pytest
from behaviour.event_log import event
from support.postgres.database_under_test import DatabaseUnderTest
from support.postgres.private_postgres import NOBODY, Postgres

from chassis.errors import RpcError
from chassis.postgres.event_store import EventStore
from stack.chaos import disk

from .test_event_store import create_tables, insert_key


@pytest.fixture
def small(postgres: Postgres) -> Iterator[Path]:
    """Mount a separate file system of one megabyte."""
    if os.getuid():
        pytest.skip("only root may mount a file system")
    folder = postgres.folder / "small"
    folder.mkdir()
    options = f"size=1m,mode=700,uid={NOBODY},gid={NOBODY}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
async def store(
    under_test: DatabaseUnderTest, postgres: Postgres, schema: str, small: Path
) -> AsyncIterator[EventStore]:
    """An event store with its rows on the small file system."""
    await create_tables(under_test)
    postgres.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
    postgres.execute(f"ALTER TABLE {schema}.events SET TABLESPACE small", dbname=schema)
    yield await EventStore.open(under_test.database, write_rows=insert_key)
    await under_test.database.close()
    postgres.execute(f"ALTER TABLE {schema}.events SET TABLESPACE pg_default", dbname=schema)
    postgres.execute("DROP TABLESPACE small")


async def _append(store: EventStore) -> UUID:
    """Append an event whose row fills a page."""
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1, sku=secrets.token_hex(3000))], key=stream.hex)
    return stream


async def _appends(store: EventStore) -> None:
    for _ in range(1000):
        await _append(store)


async def _error_when_full(store: EventStore) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(RpcError) as raised:
        await _appends(store)
    return raised.value.code, raised.value.reason


async def test_a_full_disk_and_the_simulated_one_cause_the_same_error_and_no_restart(
    store: EventStore, postgres: Postgres, schema: str, small: Path
) -> None:
    before = await _append(store)
    server = postgres.process

    real = await _error_when_full(store)
    assert shutil.disk_usage(small).free < 8192
    assert [each.version for each in await store.read(before)] == [1]
    subprocess.run(["mount", "-o", "remount,size=2m", str(small)], check=True)
    await _append(store)

    postgres.execute(disk.FILL, dbname=schema)
    simulated = await _error_when_full(store)
    postgres.execute(disk.CLEAR, dbname=schema)
    await _append(store)

    assert real == simulated == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    assert postgres.process is server
