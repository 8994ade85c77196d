"""The consistency check and the rebuild take the same memory however many orders there are."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import psycopg
import pytest
from behaviour.order.support.service import shipped
from behaviour.order.support.storages import make_tables
from support.postgres.database_under_test import DatabaseUnderTest, database_under_test
from support.postgres.peak_memory import Work, peak_mib
from support.postgres.private_postgres import Postgres

from chassis.postgres.event_store import EventStore
from chassis.settings import Live
from order_service.operations import order_check
from order_service.operations.projection_rebuild import Rebuild, exclusive_session
from order_service.storage import idempotency_keys
from stack.config import ROOT

# At rest, a serving process takes about this much of the memory of its allocation, which the operations share.
SERVING_MIB = 90
ID = "('0195' || lpad(to_hex(number), 28, '0'))::uuid"
USER = "('00000000-0000-4000-8000-' || lpad(to_hex(number % 1000), 12, '0'))"
# Two events of each order as the service records them, with its row and key.
FILL = """
INSERT INTO events (originator_id, originator_version, topic, state)
SELECT {id}, version, CASE version WHEN 1 THEN 'OrderPlaced' ELSE 'OrderConfirmed' END, convert_to(json_build_object(
    'id', md5(number::text || version), 'schema', 2,
    'data', CASE version WHEN 1 THEN json_build_object('user_id', {user}, 'currency', 'EUR', 'total', 700, 'lines',
        json_build_array(json_build_object('sku', 'tea', 'quantity', 2, 'unit_price', 350))) ELSE '{{}}' END,
    'meta', json_build_object('occurred_at', '2026-11-01T10:00:00+00:00', 'actor', {user}, 'traceparent', '',
        'command_id', md5('command' || number || version)::uuid))::text, 'UTF8')
FROM generate_series(1, {orders}) AS number, generate_series(1, 2) AS version ORDER BY number, version;
INSERT INTO orders SELECT {id}, {user}::uuid, 'confirmed', 'EUR',
    '[{{"sku": "tea", "quantity": 2, "unit_price": 350}}]', 700, 2, '2026-11-01T10:00:00+00:00'
FROM generate_series(1, {orders}) AS number;
INSERT INTO idempotency_keys SELECT {user}::uuid, number::text, '', {id}, now() + interval '1 hour'
FROM generate_series(1, {orders}) AS number;
INSERT INTO projections SELECT name, {orders} * 2 FROM unnest(ARRAY['orders', 'outbox']) AS name;
"""


async def check(under_test: DatabaseUnderTest) -> None:
    await order_check.report(under_test.database, timedelta(days=1))


async def rebuild(under_test: DatabaseUnderTest) -> None:
    database = under_test.database
    store = await EventStore.open(database, write_rows=idempotency_keys.insert_key)
    async with exclusive_session(database) as session:
        await Rebuild(session, database.name, store, Live(shipped())).run()


OPERATIONS = pytest.mark.parametrize("operation", [check, rebuild])


def fill(postgres: Postgres, schema: str, orders: int) -> None:
    """Replaces the content of the store: each order is placed and confirmed, and its row and its key are there."""
    tables = "events, orders, projections, idempotency_keys"
    options = f"-csearch_path={schema}"
    statements = FILL.format(id=ID, user=USER, orders=orders).encode()
    with psycopg.connect(postgres.dsn(dbname=schema, options=options), autocommit=True) as connection:
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
        connection.execute(statements)
        connection.execute("ANALYZE")


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> str:
    name = postgres.make_schema("order_service")
    make_tables(postgres, name)
    return name


def allocation_mib() -> int:
    """Returns the memory limit of an instance."""
    found = re.search(r"memory = (\d+)", (ROOT / "nomad/jobs/service.nomad.hcl").read_text())
    assert found
    return int(found[1])


@OPERATIONS
@pytest.mark.timeout(1200)
def test_ten_times_the_orders_take_the_same_memory(postgres: Postgres, tables: str, operation: Work) -> None:
    fill(postgres, tables, 1_500)
    few = peak_mib(postgres, tables, operation, 500)
    fill(postgres, tables, 15_000)
    many = peak_mib(postgres, tables, operation, 500)
    print(f"\n{operation.__name__}: {few:.0f} MiB with 1,500 orders, {many:.0f} MiB with 15,000")
    assert many < few + 12


@OPERATIONS
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_200_000_orders_fit_into_the_allocation_beside_the_serving_process(
    postgres: Postgres, tables: str, operation: Work
) -> None:
    fill(postgres, tables, 200_000)
    peak = peak_mib(postgres, tables, operation, 1700)
    print(f"\n{operation.__name__}: {peak:.0f} MiB with 200,000 orders")
    assert peak + SERVING_MIB < allocation_mib()


async def test_the_check_of_the_store_finds_nothing_in_it(
    postgres: Postgres, tables: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the store that is measured is a sound one, and each of its orders is read."""
    await asyncio.to_thread(fill, postgres, tables, 700)
    async with database_under_test(postgres, tables) as under_test:
        await check(under_test)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith('{"finding')] == []
    assert sum(line.startswith('{"order"') for line in lines) == 700
    assert '{"counts": {"orders": 700, "events": 1400, "keys": 700, "outbox": 0}}' in lines


async def test_two_orders_of_one_command_are_found_in_the_whole_store(
    postgres: Postgres, tables: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(fill, postgres, tables, 700)
    same = """UPDATE order_service.events SET state = convert_to(regexp_replace(convert_from(state, 'UTF8'),
                  '"command_id" : "[^"]*"', '"command_id" : "7e1f5ae2-0000-4000-8000-000000000000"'), 'UTF8')
              WHERE notification_id IN (11, 301, 1201)"""
    await asyncio.to_thread(postgres.execute, same, dbname=tables)
    async with database_under_test(postgres, tables) as under_test:
        await check(under_test)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"finding')]
    assert len(found) == 2
    assert all('"rule": "doubled"' in line for line in found)
