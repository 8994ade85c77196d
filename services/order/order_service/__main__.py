"""Starts the Order Service: serves gRPC without an argument, runs the worker with `worker`.

`audit` and `rebuild NAME` are commands of an operator: they run once and exit.
"""

from __future__ import annotations

import sys
from functools import partial

import grpc

from chassis import process
from chassis.auth.acting_user import rules_of
from chassis.process import Process
from chassis.serving import server
from chassis.serving.server import ActingUsers
from order_service.commands import Commands
from order_service.operations import order_check, projection_rebuild
from order_service.order_watches import OrderWatches
from order_service.placing_admission import PlacingAdmission
from order_service.queries import PostgresReadTable, Queries
from order_service.rpc import ACTS_FOR, SERVICE, OrderRpc
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.idempotency_keys import PostgresIdempotencyKeys
from order_service.storage.placing_pause import PostgresPlacingPause
from order_service.worker import composition
from shop.order.v1.order_pb2_grpc import add_OrderServiceServicer_to_server
from shop_contract.access_tokens import AccessTokenFormat

# A cancellation releases credit and so reduces the load.
_URGENT = ("CancelOrder",)


async def compose(process: Process[Settings]) -> None:
    database, store = await open_storage(process)
    commands = Commands(store, PostgresIdempotencyKeys(database), process.settings)
    queries = Queries(store, PostgresReadTable(database))
    admission = PlacingAdmission(PostgresPlacingPause(database), process.settings)
    rpc = OrderRpc(commands, queries, OrderWatches(process, store, queries), admission.check)

    def register(grpc_server: grpc.aio.Server) -> None:
        add_OrderServiceServicer_to_server(rpc, grpc_server)

    limits = process.settings.section(lambda settings: settings.limiter)
    urgent = [f"/{SERVICE}/{method}" for method in _URGENT]
    users = ActingUsers(rules_of(SERVICE, ACTS_FOR), AccessTokenFormat())
    await server.serve(process, register, [SERVICE], limiter_settings=limits, urgent=urgent, users=users)


def main() -> None:
    match sys.argv[1:]:
        case []:
            process.run("order-service", Settings, compose)
        case ["worker"]:
            process.run("order-service", Settings, composition.compose)
        case ["audit"]:
            process.run("order-service", Settings, order_check.compose)
        case ["rebuild", name]:
            process.run("order-service", Settings, partial(projection_rebuild.compose, name=name))
        case _:
            sys.exit("usage: order-service.pyz [worker | audit | rebuild NAME]")


if __name__ == "__main__":
    main()
