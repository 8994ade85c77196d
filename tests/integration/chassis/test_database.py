"""The pool and the migrations on a real Postgres."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import grpc
import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.postgres.leased_database import World, started
from support.postgres.private_postgres import Postgres

from chassis.deadline import deadline
from chassis.errors import ConfigurationError, RpcError
from chassis.postgres import cursors

from .waiting import until


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `shop_schema` with one migration."""
    folder = tmp_path / "shop_schema" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "shop_schema" / "__init__.py").touch()
    (folder / "001_users.sql").write_text("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1);")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop_schema", raising=False)
    return folder


async def test_a_migration_that_was_edited_is_refused_by_name(world: World, package: Path) -> None:
    await world.database.migrate("shop_schema")
    (package / "001_users.sql").write_text("CREATE TABLE users (id bigint PRIMARY KEY);")
    with pytest.raises(ConfigurationError, match="shop_schema/001_users"):
        await world.database.migrate("shop_schema")


async def test_a_migration_that_fails_leaves_nothing_behind(world: World, package: Path) -> None:
    (package / "002_broken.sql").write_text("CREATE TABLE orders (id int); SELECT nonsense();")
    with pytest.raises(psycopg.ProgrammingError):
        await world.database.migrate("shop_schema")
    (package / "002_broken.sql").write_text("CREATE TABLE orders (id int);")
    await world.database.migrate("shop_schema")


async def test_instances_that_start_together_apply_each_migration_once(world: World, package: Path) -> None:
    await asyncio.gather(*(world.database.migrate("shop_schema") for _ in range(5)))
    async with world.database.connection() as connection:
        rows = await (await connection.execute("SELECT id FROM users")).fetchall()
        names = await (await connection.execute("SELECT name FROM schema_migrations")).fetchall()
    assert (rows, names) == ([{"id": 1}], [{"name": "shop_schema/001_users"}])


async def test_what_is_made_belongs_to_the_owner_role(world: World, package: Path, postgres: Postgres) -> None:
    await world.database.migrate("shop_schema")
    owners = postgres.rows("SELECT tableowner FROM pg_tables WHERE tablename = 'users'", dbname=world.database.name)
    assert owners == [(world.database.name,)]


async def test_an_exception_rolls_the_transaction_back(world: World, package: Path) -> None:
    await world.database.migrate("shop_schema")

    async def work() -> None:
        async with world.database.connection() as connection:
            await connection.execute("INSERT INTO users VALUES (2)")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await work()
    async with world.database.connection() as connection:
        assert len(await (await connection.execute("SELECT id FROM users")).fetchall()) == 1


async def test_a_full_pool_ends_with_the_deadline(world: World) -> None:
    gate = asyncio.Event()

    async def hold() -> None:
        async with world.database.connection():
            await gate.wait()

    holders = [asyncio.create_task(hold()) for _ in range(5)]
    await until("the pool is empty", lambda: world.database._pool.get_stats().get("pool_available") == 0)
    await until("all are held", lambda: world.database._pool.get_stats().get("pool_size") == 5)
    with deadline(0.3), pytest.raises(RpcError) as refusal:
        await world.database.check()
    assert refusal.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.set()
    await asyncio.gather(*holders)


async def test_a_read_is_done_again_on_a_fresh_connection(world: World, postgres: Postgres) -> None:
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

    assert await world.database.read(work) == 7
    assert calls == 2


async def test_idle_connections_that_were_cut_are_replaced_unseen(world: World, postgres: Postgres) -> None:
    await world.database.check()
    for _ in range(5):
        await asyncio.to_thread(
            postgres.execute,
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{world.database.name}'",
        )
        await world.database.check()


async def test_a_new_vault_token_means_a_new_login_at_once(world: World) -> None:
    first = world.database.login().user
    world.vault.tell()
    await until("another login", lambda: world.database.login().user != first, 2)


async def test_a_lease_that_can_be_renewed_keeps_its_login(postgres: Postgres, schema: str) -> None:
    async with started(postgres, schema, seconds=0.6) as world:
        lease = world.login.lease
        assert lease is not None
        await until("it is renewed", lambda: (world.login.lease or lease).acquired > lease.acquired + 1, 5)
        assert len(world.vault.issued) == 1


async def test_the_deadline_cuts_a_slow_statement(world: World) -> None:
    started_at = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), world.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(30)")
    assert time.monotonic() - started_at < 2
    await world.database.check()


async def test_a_statement_past_the_deadline_is_cancelled_in_the_server(world: World, postgres: Postgres) -> None:
    began = time.monotonic()
    with pytest.raises(RpcError) as refusal, deadline(0.3):
        async with world.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")
    assert refusal.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5
    assert sleeping(postgres) == []


async def test_without_a_deadline_a_statement_runs_on(world: World) -> None:
    """The control: nothing but the deadline ended the one above."""
    async with world.database.connection() as connection:
        await connection.execute("SELECT pg_sleep(0.6)")
        rows = await (await connection.execute("SHOW statement_timeout")).fetchall()
    assert rows == [{"statement_timeout": "10s"}]


async def test_the_time_limit_ends_with_its_transaction_and_costs_no_round_trip(world: World) -> None:
    with deadline(5.0):
        async with world.database.connection() as connection:
            cursor = await connection.execute("SELECT current_setting('statement_timeout') AS told, 1 AS one")
            first = await cursor.fetchone()
    async with world.database.connection() as connection:
        later = await (await connection.execute("SHOW statement_timeout")).fetchone()
    assert first is not None
    assert first["one"] == 1
    assert first["told"].endswith("s")
    assert first["told"] != "10s"
    assert later == {"statement_timeout": "10s"}


async def test_a_task_that_is_cancelled_takes_its_statement_along(world: World, postgres: Postgres) -> None:
    async def sleep() -> None:
        async with world.database.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(sleep())
    await until("it sleeps", lambda: len(sleeping(postgres)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until("nothing sleeps", lambda: sleeping(postgres) == [])


async def test_a_refused_row_is_still_told_by_its_name_under_a_deadline(world: World) -> None:
    with deadline(5.0):
        async with world.database.connection() as connection:
            await connection.execute("CREATE TABLE once (id int PRIMARY KEY)")
            await connection.execute("INSERT INTO once VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with world.database.connection() as connection:
                await connection.execute("INSERT INTO once VALUES (%s)", (1,))


@pytest.mark.parametrize("traced", [False, True])
async def test_an_error_repeats_the_row_neither_in_its_words_nor_in_its_span(
    world: World, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(cursors, "_tracer", provider.get_tracer("test"))
    async with world.database.connection() as connection:
        await connection.execute("CREATE TABLE people (email text PRIMARY KEY, hash text CHECK (hash = ''))")
    row = ("ada@example.com", "$argon2id$")
    around = provider.get_tracer("test").start_as_current_span("call") if traced else nullcontext()
    with around, pytest.raises(psycopg.errors.CheckViolation) as refusal:
        async with world.database.connection() as connection:
            await connection.execute("INSERT INTO people VALUES (%s, %s)", row)
    assert refusal.value.diag.constraint_name == "people_hash_check"
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    told = "".join([*spans, *traceback.format_exception(refusal.value)])
    assert len(spans) == 2 * traced
    assert 'violates check constraint "people_hash_check"' in told
    assert not any(value in told for value in row)


async def test_while_the_server_refuses_connections_a_caller_is_told_so_long_before_its_deadline(
    world: World, postgres: Postgres
) -> None:
    await world.database.check()
    postgres.stop(kill=True)
    began = time.monotonic()
    with deadline(30.0), pytest.raises(RpcError) as refusal:
        await world.database.check()
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert time.monotonic() - began < 2.5, "the pool would have waited for 3 seconds"
    await asyncio.to_thread(postgres.start)

    async def answers() -> bool:
        try:
            await world.database.check()
        except RpcError:
            return False
        return True

    await until("the database answers again", answers)


def sleeping(postgres: Postgres) -> list[tuple[object, ...]]:
    return postgres.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
