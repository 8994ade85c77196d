"""The pool on a real Postgres: statements in one round trip, their deadline, and their errors."""

from __future__ import annotations

import asyncio
import time

import grpc
import psycopg
import pytest
from psycopg import waiting
from psycopg.rows import tuple_row
from support.postgres.database_under_test import DatabaseUnderTest
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.postgres.pool import Pool

SLEEPING = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid() AND state = 'active'"
)
INSERT = "INSERT INTO things VALUES (%s)"
WRONG = "SELECT 1 / %s"


@pytest.fixture
async def pool(under_test: DatabaseUnderTest) -> Pool:
    async with under_test.database.connection() as connection:
        await connection.execute("CREATE TABLE things (id int PRIMARY KEY)")
    return under_test.database.pool


async def ids(pool: Pool) -> list[int]:
    return [row[0] for row in await pool.fetch("SELECT id FROM things ORDER BY id", row_factory=tuple_row)]


async def test_statements_of_a_transaction_take_effect_together(pool: Pool) -> None:
    await pool.transact([(INSERT, (1,)), (INSERT, (2,))])
    assert await ids(pool) == [1, 2]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_wrong_statement_undoes_all_and_its_error_is_raised(pool: Pool, place: int) -> None:
    statements = [(INSERT, (number,)) for number in range(2)]
    for _ in range(20):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.transact([*statements[:place], (WRONG, (0,)), *statements[place:]])  # type: ignore[list-item]
    assert await ids(pool) == []


@pytest.mark.parametrize("steps", range(24))
async def test_a_transaction_that_is_cancelled_at_any_step_takes_effect_as_a_whole_and_leaves_a_usable_connection(
    pool: Pool, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(waiting, "MAX_BUSY_TIME", 0.0)  # psycopg gives way to other tasks at every step
    placing = asyncio.create_task(pool.transact([(INSERT, (1,)), (INSERT, (2,))]))
    for _ in range(steps):
        await asyncio.sleep(0)
    placing.cancel()
    await asyncio.wait([placing])
    for number in range(10, 20):  # as many as there are connections, and more
        await pool.fetch("INSERT INTO things VALUES (%s) RETURNING id", (number,), row_factory=tuple_row)
    (found,) = postgres.rows(f"SELECT array_agg(id ORDER BY id) FROM {pool.name}.things", dbname=pool.name)
    assert found[0] in ([*range(10, 20)], [1, 2, *range(10, 20)])


async def test_after_the_deadline_no_connection_is_used(pool: Pool) -> None:
    await asyncio.sleep(0.02)
    with deadline(0), pytest.raises(RpcError) as raised:
        await pool.transact([(INSERT, (1,))])
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await ids(pool) == []


async def test_a_transaction_of_a_block_is_rolled_back_after_a_single_statement(
    pool: Pool, under_test: DatabaseUnderTest
) -> None:
    async def write_and_fail() -> None:
        async with under_test.database.connection() as connection:
            await connection.execute(INSERT, (1,))
            raise ValueError("stop")

    for _ in range(3):
        assert await ids(pool) == []
        with pytest.raises(ValueError, match="stop"):
            await write_and_fail()


async def test_a_statement_is_cancelled_in_the_server_at_the_deadline(pool: Pool, postgres: Postgres) -> None:
    for _ in range(3):
        began = time.monotonic()
        with deadline(0.2), pytest.raises(RpcError) as raised:
            await pool.fetch("SELECT pg_sleep(60)", row_factory=tuple_row)
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 5
        assert postgres.rows(SLEEPING) == []
    assert await pool.fetch("SHOW statement_timeout", row_factory=tuple_row) == [("10s",)]


async def test_a_transaction_is_cancelled_in_the_server_at_the_deadline(pool: Pool, postgres: Postgres) -> None:
    with deadline(0.2), pytest.raises(RpcError) as raised:
        await pool.transact([(INSERT, (1,)), ("SELECT pg_sleep(60)", ()), (INSERT, (2,))])
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert postgres.rows(SLEEPING) == []
    assert await ids(pool) == []


async def test_a_cancelled_task_cancels_its_statement_and_returns_the_connection(
    pool: Pool, postgres: Postgres
) -> None:
    before = pool.get_stats()["connections_num"]
    for _ in range(10):
        task = asyncio.create_task(pool.fetch("SELECT pg_sleep(60)", row_factory=tuple_row))
        await until("it sleeps", lambda: len(postgres.rows(SLEEPING)) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert postgres.rows(SLEEPING) == []
    assert pool.get_stats()["connections_num"] == before


async def test_more_callers_than_connections_wait_for_each_other(pool: Pool) -> None:
    found = await asyncio.gather(*(pool.fetch("SELECT %s::int", (n,), row_factory=tuple_row) for n in range(200)))
    assert found == [[(n,)] for n in range(200)]
    assert pool.get_stats()["pool_size"] <= pool.max_size


async def test_a_caller_that_waits_for_a_connection_fails_at_its_deadline(pool: Pool) -> None:
    slow = [asyncio.create_task(pool.fetch("SELECT pg_sleep(1)", row_factory=tuple_row)) for _ in range(pool.max_size)]
    await until("all are in use", pool._permits.locked)
    began = time.monotonic()
    with deadline(0.2), pytest.raises(RpcError) as raised:
        await ids(pool)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 0.6
    await asyncio.gather(*slow)


async def test_a_pool_that_grows_opens_more_connections(pool: Pool, postgres: Postgres) -> None:
    await pool.grow(3)
    slow = [asyncio.create_task(pool.fetch("SELECT pg_sleep(0.5)", row_factory=tuple_row)) for _ in range(8)]
    await until("all sleep", lambda: len(postgres.rows(SLEEPING)) == 8)
    await asyncio.gather(*slow)
