"""An instance is killed while it places an order: the order and its key both exist, or neither does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from behaviour.order.support.order_process import placing
from behaviour.order.support.service import Service
from support.postgres.private_postgres import Postgres

from stack.machine import processes

from .gate import GATE, closed, waiting_session

WAITS = f"""CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
    PERFORM pg_advisory_xact_lock({GATE});
    RETURN NULL;
END $$"""
AT_A_ROW = "CREATE TRIGGER waits AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION wait()"
AT_THE_COMMIT = """CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON {}
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"""
LEFT = """SELECT (SELECT count(*) FROM order_service.events), (SELECT count(*) FROM order_service.idempotency_keys)"""


@contextmanager
def trigger(postgres: Postgres, schema: str, table: str, statement: str) -> Iterator[None]:
    postgres.execute(f"SET search_path = {schema}", f"SET ROLE {schema}", WAITS, statement.format(table), dbname=schema)
    try:
        yield
    finally:
        postgres.execute(f"DROP FUNCTION {schema}.wait CASCADE", dbname=schema)


async def ended(postgres: Postgres, session: int) -> None:
    """Returns when Postgres has ended the session of the killed instance."""
    query = f"SELECT 1 FROM pg_stat_activity WHERE pid = {session}"
    async with asyncio.timeout(20):
        while await asyncio.to_thread(postgres.rows, query):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("table", ["idempotency_keys", "events"])
async def test_if_its_session_ends_before_the_commit_neither_order_nor_key_exists_and_the_repeat_places_it(
    service: Service, postgres: Postgres, tables: str, table: str
) -> None:
    with (
        trigger(postgres, tables, table, AT_A_ROW),
        placing(postgres, tables, "k1") as instance,
        closed(postgres, tables),
    ):
        session = await waiting_session(postgres)
        instance.kill()
        instance.join(20)
        postgres.execute(f"SELECT pg_terminate_backend({session})")
        await ended(postgres, session)
    assert postgres.rows(LEFT, dbname=tables) == [(0, 0)]
    order = await service.place("k1")
    assert await service.types(order.id) == ["OrderPlaced"]
    assert postgres.rows(LEFT, dbname=tables) == [(1, 1)]


@pytest.mark.parametrize("table", ["idempotency_keys", "events"])
async def test_after_a_kill_while_postgres_works_order_and_key_exist_or_neither_and_the_repeat_returns_one_order(
    service: Service, postgres: Postgres, tables: str, table: str
) -> None:
    """Postgres has received all statements with the end of the transaction, so it may commit them."""
    with trigger(postgres, tables, table, AT_A_ROW), placing(postgres, tables, "k1") as instance:
        with closed(postgres, tables):
            session = await waiting_session(postgres)
            instance.kill()
            instance.join(20)
        await ended(postgres, session)
    assert postgres.rows(LEFT, dbname=tables) in ([(0, 0)], [(1, 1)])
    order = await service.place("k1")
    assert await service.types(order.id) == ["OrderPlaced"]
    assert postgres.rows(LEFT, dbname=tables) == [(1, 1)]


async def test_after_a_kill_between_commit_and_answer_both_exist_and_the_repeat_returns_them(
    service: Service, postgres: Postgres, tables: str
) -> None:
    with trigger(postgres, tables, "events", AT_THE_COMMIT), placing(postgres, tables, "k1") as instance:
        with closed(postgres, tables):
            await waiting_session(postgres)
            assert instance.pid
            # It has sent the commit and will be killed before it receives the answer.
            processes.pause(instance.pid)
        async with asyncio.timeout(20):
            while await service.store.head() == 0:
                await asyncio.sleep(0.01)
        instance.kill()
        instance.join(20)
    assert instance.exitcode == -signal.SIGKILL
    assert postgres.rows(LEFT, dbname=tables) == [(1, 1)]
    ((_, placed),) = await service.store.since(0)
    assert (await service.place("k1")).id == placed.stream
    assert postgres.rows(LEFT, dbname=tables) == [(1, 1)]
