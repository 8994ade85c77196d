"""Measures the CPU time of the Order Service per GetOrder, beside a bare grpc.aio handler with one SELECT.

Both read the same rows of the same Postgres. Ours runs as in a stack, with its default settings; a caller's flag says
whether a call is traced. The answers are compared before anything is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

from bench.measurement.options import options
from bench.measurement.rounds import Measurement, Visit
from bench.measurement.visits import measured
from bench.setup.agents import Agents
from bench.setup.checkout import Checkout, checkouts
from bench.setup.order_database import NAME, order_database
from bench.setup.our_process import started
from bench.setup.processes import Server, free_port, serving
from bench.traffic.grpc_load import call, closed_loop
from bench.traffic.load import Load
from support.postgres.private_postgres import Postgres

from shop.order.v1 import order_pb2
from stack.machine.processes import family

PEERS, SETUP = (Path(__file__).parents[1] / name for name in ("peers", "setup"))
BARE, OURS, TRACED = "bare grpc.aio + one SELECT", "order-service", "order-service, traced call"
GET, PLACE = "/shop.order.v1.OrderService/GetOrder", "/shop.order.v1.OrderService/PlaceOrder"
SERVER, POSTGRES = "server", "Postgres"
ORDERS = 200


def place(address: str, user: str = "") -> list[bytes]:
    """Places orders of one user, of a new one if none is given, and returns the requests that read them."""
    user = user or str(uuid4())
    requests = []
    for number in range(ORDERS):
        lines = [order_pb2.OrderLine(sku="tea-green", quantity=2, unit_price=350 + number)]
        message = order_pb2.PlaceOrderRequest(user_id=user, idempotency_key=str(number), currency="EUR", lines=lines)
        answer = order_pb2.PlaceOrderResponse.FromString(call(address, PLACE, message.SerializeToString()))
        wanted = order_pb2.GetOrderRequest(user_id=user, order_id=answer.order.id)
        requests.append(wanted.SerializeToString())
    return requests


def check(name: str, address: str, answers: Mapping[bytes, bytes]) -> None:
    """Raises SystemExit unless the server returns the same orders."""
    for asked, wanted in answers.items():
        found, first = (order_pb2.GetOrderResponse.FromString(x) for x in (call(address, GET, asked), wanted))
        if found != first:
            raise SystemExit(f"{name} answers otherwise:\n{found}\ninstead of\n{first}")


def visit(
    server: Server, postgres: list[int], requests: list[bytes], chosen: argparse.Namespace, traced: bool
) -> Visit:
    def run() -> Load:
        load = closed_loop(server.address, GET, requests, chosen.callers, chosen.seconds, traced=traced)
        return load.must_be_good()

    return measured({SERVER: server.pids(), POSTGRES: postgres}, run)


def measure(chosen: argparse.Namespace) -> None:
    with ExitStack() as stack:
        database = stack.enter_context(order_database())
        port = free_port()
        sink = stack.enter_context(serving([sys.executable, str(SETUP / "otlp_sink.py"), str(port)], port))
        found = stack.enter_context(checkouts(chosen.against))
        servers = {each: stack.enter_context(service(each, database, sink.address)) for each in found}
        ours = servers[found[0]]
        requests = place(ours.address)
        answers = {asked: call(ours.address, GET, asked) for asked in requests[:20]}
        ways: dict[str, tuple[Server, bool]] = {BARE: (stack.enter_context(bare(database)), False), OURS: (ours, False)}
        ways |= {f"order-service at {each.name}": (servers[each], False) for each in found[1:]}
        ways[TRACED] = (ours, True)
        visits: dict[str, Callable[[], Visit]] = {}
        for name, (server, _) in ways.items():
            check(name, server.address, answers)
            closed_loop(server.address, GET, requests, chosen.callers, chosen.seconds)  # opens its connections
        postgres = sorted(family([database.process.pid])) if database.process else []
        for name, (server, traced) in ways.items():
            visits[name] = partial(visit, server, postgres, requests, chosen, traced)
        report(Measurement.run(visits, chosen.rounds))


def service(checkout: Checkout, database: Postgres, otlp: str) -> AbstractContextManager[Server]:
    """Starts the Order Service of a checkout; it applies its migrations."""
    agents = Agents({"order-service": checkout.settings("order-service")}, {"postgres": f"127.0.0.1:{database.port}"})
    return started(checkout, ["-m", "order_service"], agents, otlp)


def bare(database: Postgres) -> AbstractContextManager[Server]:
    port, dsn = free_port(), database.dsn(user="order-service", dbname=NAME)
    return serving([sys.executable, str(PEERS / "bare_order_service.py"), str(port), dsn], port)


def report(found: Measurement) -> None:
    print(found.table(SERVER))
    print(found.table(POSTGRES))
    for name in found.visits:
        if name != BARE:
            for part in (SERVER, POSTGRES):
                ratio = found.ratio(name, BARE, lambda visit, part=part: visit.microseconds(part))  # type: ignore[misc]
                print(f"{f'{name} / {BARE}, {part}':<80} {ratio.text(2)}")


if __name__ == "__main__":
    parser = options("reads", rounds=5, seconds=2.0, against="also measure the Order Service of an earlier commit")
    parser.add_argument("--callers", type=int, default=8, help="concurrent calls (default 8)")
    measure(parser.parse_args())
