"""Measures the memory that work on a database takes, in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres

Work = Callable[[DatabaseUnderTest], Awaitable[None]]


def peak_mib(postgres: Postgres, schema: str, work: Work, seconds: float) -> float:
    """Returns the peak of the resident memory of a process that does only `work`, a function of a module, in MiB.

    What the work prints is dropped. Raises AssertionError if it fails or takes longer than `seconds`.
    """
    context = multiprocessing.get_context("spawn")
    reads, writes = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(postgres.port, schema, work, writes))
    process.start()
    process.join(seconds)
    process.kill()
    process.join(20)
    assert process.exitcode == 0
    return float(reads.recv())


def _measured(port: int, schema: str, work: Work, result: Connection) -> None:
    async def run() -> None:
        async with database_under_test(Postgres(Path(), port), schema) as under_test:
            await work(under_test)

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        asyncio.run(run())
    # Of this program alone: resource.getrusage includes the process that started it.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    result.send(int(found[1]) / 1024)
