"""Measures orders placed and read per second on a private Postgres, beside pgbench and the plain event library.

Each of them places an order by two rows: the event and the idempotency key. In pgbench and in the library each order is
a transaction; ours share one when they arrive together. The first row is pgbench with every statement and lock of ours;
the process is a real Order Service, called by gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog
from behaviour.order.support.service import ADA, TEA, Service, shipped
from behaviour.order.support.storages import on_postgres
from bench.setup.agents import Agents
from bench.setup.checkout import here
from bench.setup.order_database import order_database
from bench.setup.our_process import started
from bench.setup.processes import free_port, serving
from bench.traffic.grpc_load import closed_loop
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate
from support.postgres.private_postgres import Postgres, binaries

from shop.order.v1 import order_pb2

SECONDS, ROUNDS = 2.0, 3
CLIENTS = (1, 16)
SCHEMA, PLACE = "order_service", "/shop.order.v1.OrderService/PlaceOrder"
STATE = "x" * 420  # as long as the state of an order of one line
EVENT = f"INSERT INTO bench_events VALUES (uuidv7(), 1, 'OrderPlaced', '{STATE}'::bytea);"
KEY = f"INSERT INTO bench_keys VALUES ('{ADA}', gen_random_uuid()::text, repeat('h', 64), uuidv7(), now());"
LOCK = "LOCK TABLE bench_events IN EXCLUSIVE MODE;"
LIMITS = ("SELECT pg_notify('bench_events', ''), set_config('lock_timeout', '2s', true),"
          " set_config('transaction_timeout', '10s', true);")  # fmt: skip
READ = "\\set n random(1, 1000)\nSELECT e.* FROM bench_read r JOIN events e USING (originator_id) WHERE r.n = :n;"


class Placed(Aggregate):
    """An order in the plain library."""

    def __init__(self, user_id: str, currency: str, lines: list[dict[str, object]], total: int) -> None:
        self.user_id, self.currency, self.lines, self.total = user_id, currency, lines, total


class Used(Aggregate):
    """An idempotency key in the plain library: an aggregate whose id is made of user and key."""

    def __init__(self, key: str, order_id: str) -> None:
        self.key, self.order_id = key, order_id

    @staticmethod
    def create_id(key: str) -> UUID:
        return uuid5(NAMESPACE_URL, key)


def pgbench(server: Postgres, script: str, clients: int) -> float:
    """Returns transactions per second."""
    folder = binaries()
    assert folder is not None
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [str(folder / "pgbench"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-n",
                   "-M", "prepared", "-c", str(clients), "-j", str(min(2, clients)), "-T", f"{SECONDS:.0f}",
                   "-f", file.name, SCHEMA]  # fmt: skip
        env = os.environ | {"PGOPTIONS": f"-c search_path={SCHEMA}"}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    found = re.search(r"tps = ([\d.]+)", result.stdout)
    assert found, result.stderr
    return float(found[1])


async def ours(work: Callable[[], Awaitable[object]], clients: int) -> float:
    """Returns calls per second of concurrent tasks in one process, as in an instance of the service."""
    ends_at, done = time.monotonic() + SECONDS, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < ends_at:
            await work()
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / SECONDS


def threads(work: Callable[[], object], clients: int) -> float:
    """Returns calls per second of concurrent threads in one process."""
    ends_at, done = time.monotonic() + SECONDS, itertools.count()

    def client() -> None:
        while time.monotonic() < ends_at:
            work()
            next(done)

    started = [threading.Thread(target=client) for _ in range(clients)]
    for each in started:
        each.start()
    for each in started:
        each.join()
    return next(done) / SECONDS


def library(server: Postgres) -> Application[UUID]:
    """Returns the event library, set up as in its documentation."""
    where = {"DBNAME": SCHEMA, "HOST": "127.0.0.1", "PORT": str(server.port), "USER": "postgres", "PASSWORD": "unused"}
    settings = {f"POSTGRES_{name}": value for name, value in where.items()}
    return Application(env={"PERSISTENCE_MODULE": "eventsourcing.postgres", "POSTGRES_SCHEMA": SCHEMA, **settings})


def placed_by_grpc(address: str, callers: int) -> float:
    """Returns orders placed per second by concurrent calls of the process at `address`."""

    def messages() -> Iterator[bytes]:
        line = order_pb2.OrderLine(sku=TEA.sku, quantity=TEA.quantity, unit_price=TEA.unit_price)
        message = order_pb2.PlaceOrderRequest(user_id=str(ADA), currency="EUR", lines=[line])
        while True:
            message.idempotency_key = secrets.token_hex(16)
            yield message.SerializeToString()

    load = closed_loop(address, PLACE, messages(), callers, SECONDS)
    return load.good / load.seconds


@contextmanager
def order_service(server: Postgres) -> Iterator[str]:
    """Runs an Order Service, which applies its migrations; yields its address."""
    agents = Agents({"order-service": here().settings("order-service")}, {"postgres": f"127.0.0.1:{server.port}"})
    sink, port = Path(__file__).parents[1] / "setup" / "otlp_sink.py", free_port()
    with (
        serving([sys.executable, str(sink), str(port)], port) as receiver,
        started(here(), ["-m", "order_service"], agents, receiver.address) as service,
    ):
        yield service.address


async def compare(what: str, ways: Mapping[str, Callable[[int], Awaitable[float]]]) -> None:
    """Prints the rate of each way beside the first one; their rounds alternate, so other load affects all alike."""
    print(f"{what:<64} beside pgbench")
    for clients in CLIENTS:
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                rates[name].append(await way(clients))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name, rate in medians.items():
            beside = rate / next(iter(medians.values()))
            print(f"  {name:<46} {clients:>2} at once {rate:>7.0f}/s {beside:>6.2f}")


async def measure(server: Postgres, service_address: str) -> None:
    numbers = itertools.count()
    async with on_postgres(server, SCHEMA) as storage:
        service, plain = Service(shipped(), storage), library(server)

        def save() -> None:
            lines: list[dict[str, object]] = [{"sku": TEA.sku, "quantity": TEA.quantity, "unit_price": TEA.unit_price}]
            order = Placed(str(ADA), "EUR", lines, 300)
            plain.save(order, Used(f"plain-{next(numbers)}", str(order.id)))

        def rows(script: str) -> Callable[[int], Awaitable[float]]:
            return lambda clients: asyncio.to_thread(pgbench, server, script, clients)

        def by_grpc(callers: int) -> Awaitable[float]:
            return asyncio.to_thread(placed_by_grpc, service_address, callers)

        place = {
            "pgbench, all statements and locks of ours": rows("BEGIN;" + LIMITS + LOCK + KEY + EVENT + "COMMIT;"),
            "pgbench, the rows and the lock only": rows("BEGIN;" + LOCK + KEY + EVENT + "COMMIT;"),
            "pgbench, the rows only": rows("BEGIN;" + EVENT + KEY + "COMMIT;"),
            "our process, PlaceOrder by gRPC": by_grpc,
            "our write side": lambda clients: ours(lambda: service.place(f"k{next(numbers)}"), clients),
            "the plain library": lambda clients: asyncio.to_thread(threads, save, clients),
        }
        await compare("place an order", place)

        orders = [(await service.place(f"read-{number}")).id for number in range(1000)]
        saved = [Placed(str(ADA), "EUR", [], 300) for _ in range(1000)]
        plain.save(*saved)
        ids = ", ".join(f"({number}, '{order_id}')" for number, order_id in enumerate(orders, 1))
        server.execute(f"CREATE TABLE {SCHEMA}.bench_read AS SELECT n, id::uuid AS originator_id FROM "
                       f"(VALUES {ids}) AS v (n, id)", f"ALTER TABLE {SCHEMA}.bench_read ADD PRIMARY KEY (n)",
                       f"ANALYZE {SCHEMA}.events", dbname=SCHEMA)  # fmt: skip
        one, other = itertools.cycle(orders), itertools.cycle([each.id for each in saved])
        get = partial(threads, lambda: plain.repository.get(next(other)))
        read = {
            "pgbench, the same rows": rows(READ),
            "our read side": lambda clients: ours(lambda: service.queries.get_order(ADA, next(one)), clients),
            "the plain library": lambda clients: asyncio.to_thread(get, clients),
        }
        await compare("read an order", read)
        plain.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with order_database() as postgres, order_service(postgres) as address:
        like = "CREATE TABLE {schema}.bench_{name} (LIKE {schema}.{table} INCLUDING ALL)"
        tables = {"events": "events", "keys": "idempotency_keys"}
        postgres.execute(*(like.format(schema=SCHEMA, name=n, table=t) for n, t in tables.items()), dbname=SCHEMA)
        asyncio.run(measure(postgres, address))
