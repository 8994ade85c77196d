"""A disk that is really full, beside the fault that stands for it in `./justw chaos disk full`: the caller is told the
same, reads go on, and writes are back without a restart.
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
from support.postgres.leased_database import World
from support.postgres.private_postgres import NOBODY, Postgres

from chassis.errors import RpcError
from chassis.postgres.eventstore import EventStore
from stack.chaos import disk

from .test_eventstore import postgres_keys, prepare


@pytest.fixture
def small(postgres: Postgres) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    if os.getuid():
        pytest.skip("only root may mount a file system; the fault itself needs none")
    folder = postgres.folder / "small"
    folder.mkdir()
    options = f"size=1m,mode=700,uid={NOBODY},gid={NOBODY}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
async def store(world: World, postgres: Postgres, schema: str, small: Path) -> AsyncIterator[EventStore]:
    """An event store whose rows are on the small disk."""
    await prepare(world)
    postgres.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
    postgres.execute(f"ALTER TABLE {schema}.events SET TABLESPACE small", dbname=schema)
    yield await EventStore.open(world.database, within=postgres_keys)
    await world.database.close()
    postgres.execute(f"ALTER TABLE {schema}.events SET TABLESPACE pg_default", dbname=schema)
    postgres.execute("DROP TABLESPACE small")


async def _append(store: EventStore) -> UUID:
    """A row that needs a page of its own."""
    stream = uuid4()
    await store.append(stream, 0, [event(stream, 1, sku=secrets.token_hex(3000))], key=stream.hex)
    return stream


async def _appends(store: EventStore) -> None:
    for _ in range(1000):
        await _append(store)


async def _refused(store: EventStore) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(RpcError) as refusal:
        await _appends(store)
    return refusal.value.code, refusal.value.reason


async def test_a_full_disk_and_the_fault_that_stands_for_it_are_told_alike(
    store: EventStore, postgres: Postgres, schema: str, small: Path
) -> None:
    before = await _append(store)
    server = postgres.process

    really = await _refused(store)
    assert shutil.disk_usage(small).free < 8192
    assert [each.version for each in await store.read(before)] == [1]
    subprocess.run(["mount", "-o", "remount,size=2m", str(small)], check=True)
    await _append(store)

    postgres.execute(disk.FILL, dbname=schema)
    ordered = await _refused(store)
    postgres.execute(disk.CLEAR, dbname=schema)
    await _append(store)

    assert really == ordered == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    assert postgres.process is server
