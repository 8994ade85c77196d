"""The User Service put together: without an argument it serves gRPC; `audit` is an operator's, does that and ends."""

from __future__ import annotations

import sys

import grpc

from chassis import process
from chassis.postgres.database import Database
from chassis.process import Process
from chassis.serving import server
from shop.user.v1.user_pb2_grpc import add_UserServiceServicer_to_server
from user_service import consistency_check
from user_service.access_tokens import Tokens
from user_service.commands import Commands
from user_service.passwords import Passwords
from user_service.queries import Queries
from user_service.rpc import SERVICE, UserRpc
from user_service.settings import Settings
from user_service.user_repository import PostgresAccounts

# Passwords have a queue of their own, and what gives something back makes room.
_EXEMPT = ("RegisterUser", "CreateSession", "ReleaseCredit")


async def compose(process: Process[Settings]) -> None:
    database = await Database.open(process, name="user_service")
    await database.migrate("user_service")
    accounts = PostgresAccounts(database)
    secret = await process.vault.read_secret("user-service")
    passwords = Passwords(lambda: process.settings.value, secret["password_pepper"].encode())
    commands = Commands(accounts, passwords, Tokens(process.vault), lambda: process.settings.value)
    rpc = UserRpc(commands, Queries(accounts))

    def register(grpc_server: grpc.aio.Server) -> None:
        add_UserServiceServicer_to_server(rpc, grpc_server)

    exempt = [f"/{SERVICE}/{method}" for method in _EXEMPT]
    await server.serve(process, register, [SERVICE], limiter_settings=process.settings.section(lambda s: s.limiter), exempt=exempt)


def main() -> None:
    match sys.argv[1:]:
        case []:
            process.run("user-service", Settings, compose)
        case ["audit"]:
            process.run("user-service", Settings, consistency_check.compose)
        case _:
            sys.exit("usage: user-service.pyz [audit]")


if __name__ == "__main__":
    main()
