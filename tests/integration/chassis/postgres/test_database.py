"""The connection pool on a real Postgres."""

from __future__ import annotations

import asyncio
import time
import traceback
from contextlib import nullcontext

import grpc
import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.postgres import cursors


async def test_an_exception_rolls_the_transaction_back(under_test: DatabaseUnderTest) -> None:
    async def work() -> None:
        async with under_test.database.connection() as connection:
            await connection.execute("INSERT INTO users VALUES (2)")
            raise ValueError("stop")

    async with under_test.database.connection() as connection:
        await connection.execute("CREATE TABLE users (id int)")
    with pytest.raises(ValueError, match="stop"):
        await work()
    async with under_test.database.connection() as connection:
        assert await (await connection.execute("SELECT id FROM users")).fetchall() == []


async def test_waiting_for_a_full_pool_ends_at_the_deadline(under_test: DatabaseUnderTest) -> None:
    gate = asyncio.Event()

    async def hold() -> None:
        async with under_test.database.connection():
            await gate.wait()

    holders = [asyncio.create_task(hold()) for _ in range(5)]
    await until("no connection is free", lambda: under_test.database._pool.get_stats().get("pool_available") == 0)
    await until("all connections are held", lambda: under_test.database._pool.get_stats().get("pool_size") == 5)
    with deadline(0.3), pytest.raises(RpcError) as raised:
        await under_test.database.check()
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.set()
    await asyncio.gather(*holders)


async def test_a_read_is_repeated_when_its_connection_was_lost(
    under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    calls = 0

    async def work(connection: psycopg.AsyncConnection[dict[str, int]]) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.to_thread(
                postgres.execute,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE pid = {connection.info.backend_pid}",
            )
        row = await (await connection.execute("SELECT 7 AS seven")).fetchone()
        return row["seven"] if row else 0

    assert await under_test.database.read(work) == 7
    assert calls == 2


async def test_idle_connections_that_the_server_closed_are_replaced_without_an_error(
    under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    await under_test.database.check()
    end_all = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{}'"
    for _ in range(5):
        await asyncio.to_thread(postgres.execute, end_all.format(under_test.database.name))
        await under_test.database.check()


async def test_a_new_vault_token_leads_to_new_credentials(under_test: DatabaseUnderTest) -> None:
    first = under_test.database.login().user
    under_test.vault.new_token()
    await until("other credentials", lambda: under_test.database.login().user != first, 2)


async def test_a_renewable_lease_keeps_its_user(postgres: Postgres, schema: str) -> None:
    async with database_under_test(postgres, schema, seconds=0.6) as under_test:
        lease = under_test.credentials.lease
        assert lease is not None
        await until("it is renewed", lambda: (under_test.credentials.lease or lease).acquired > lease.acquired + 1, 5)
        assert len(under_test.vault.issued) == 1


async def test_a_timeout_in_the_caller_ends_a_slow_statement(under_test: DatabaseUnderTest) -> None:
    started_at = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), under_test.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(30)")
    assert time.monotonic() - started_at < 2
    await under_test.database.check()


async def test_a_statement_past_the_deadline_is_cancelled_in_the_server(
    under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    began = time.monotonic()
    with pytest.raises(RpcError) as raised, deadline(0.3):
        async with under_test.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5
    assert sleeping(postgres) == []


async def test_a_statement_without_a_deadline_is_not_limited(under_test: DatabaseUnderTest) -> None:
    """The control experiment: only the deadline ended the statement in the test above."""
    async with under_test.database.connection() as connection:
        await connection.execute("SELECT pg_sleep(0.6)")
        rows = await (await connection.execute("SHOW statement_timeout")).fetchall()
    assert rows == [{"statement_timeout": "10s"}]


@pytest.mark.parametrize("seconds", [30 * 86_400.0, 1e12, float("inf")])
async def test_a_deadline_longer_than_any_timeout_of_postgres_limits_nothing(
    under_test: DatabaseUnderTest, seconds: float
) -> None:
    with deadline(seconds):
        async with under_test.database.connection() as connection:
            row = await (await connection.execute("SELECT 1 AS one")).fetchone()
    assert row == {"one": 1}


async def test_the_timeout_ends_with_its_transaction_and_costs_no_round_trip(under_test: DatabaseUnderTest) -> None:
    with deadline(5.0):
        async with under_test.database.connection() as connection:
            cursor = await connection.execute("SELECT current_setting('statement_timeout') AS timeout, 1 AS one")
            first = await cursor.fetchone()
    async with under_test.database.connection() as connection:
        later = await (await connection.execute("SHOW statement_timeout")).fetchone()
    assert first is not None
    assert first["one"] == 1
    assert first["timeout"].endswith("s")
    assert first["timeout"] != "10s"
    assert later == {"statement_timeout": "10s"}


async def test_a_cancelled_task_cancels_its_statement(under_test: DatabaseUnderTest, postgres: Postgres) -> None:
    async def sleep() -> None:
        async with under_test.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(sleep())
    await until("it sleeps", lambda: len(sleeping(postgres)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until("nothing sleeps", lambda: sleeping(postgres) == [])


async def test_a_violated_constraint_keeps_its_error_class_under_a_deadline(under_test: DatabaseUnderTest) -> None:
    with deadline(5.0):
        async with under_test.database.connection() as connection:
            await connection.execute("CREATE TABLE once (id int PRIMARY KEY)")
            await connection.execute("INSERT INTO once VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with under_test.database.connection() as connection:
                await connection.execute("INSERT INTO once VALUES (%s)", (1,))


@pytest.mark.parametrize("traced", [False, True])
async def test_neither_an_error_nor_its_span_contains_the_row(
    under_test: DatabaseUnderTest, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(cursors, "_tracer", provider.get_tracer("test"))
    async with under_test.database.connection() as connection:
        await connection.execute("CREATE TABLE people (email text PRIMARY KEY, hash text CHECK (hash = ''))")
    row = ("ada@example.com", "$argon2id$")
    around = provider.get_tracer("test").start_as_current_span("call") if traced else nullcontext()
    with around, pytest.raises(psycopg.errors.CheckViolation) as raised:
        async with under_test.database.connection() as connection:
            await connection.execute("INSERT INTO people VALUES (%s, %s)", row)
    assert raised.value.diag.constraint_name == "people_hash_check"
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    text = "".join([*spans, *traceback.format_exception(raised.value)])
    assert len(spans) == 2 * traced
    assert 'violates check constraint "people_hash_check"' in text
    assert not any(value in text for value in row)


async def test_a_caller_fails_long_before_its_deadline_while_the_server_refuses_connections(
    under_test: DatabaseUnderTest, postgres: Postgres
) -> None:
    await under_test.database.check()
    postgres.stop(kill=True)
    began = time.monotonic()
    with deadline(30.0), pytest.raises(RpcError) as raised:
        await under_test.database.check()
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert time.monotonic() - began < 2.5, "the pool would have waited for 3 seconds"
    await asyncio.to_thread(postgres.start)

    async def answers() -> bool:
        try:
            await under_test.database.check()
        except RpcError:
            return False
        return True

    await until("the database answers again", answers)


def sleeping(postgres: Postgres) -> list[tuple[object, ...]]:
    return postgres.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
