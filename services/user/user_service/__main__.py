"""Starts the User Service: it serves gRPC without an argument, and runs the consistency check with `audit`."""

from __future__ import annotations

import sys

import grpc

from chassis import process
from chassis.auth.acting_user import rules_of
from chassis.postgres.database import Database
from chassis.process import Process
from chassis.serving import server
from chassis.serving.server import ActingUsers
from shop.user.v1.user_pb2_grpc import add_UserServiceServicer_to_server
from shop_contract.access_tokens import AccessTokenFormat
from user_service.access_token_issuer import AccessTokenIssuer
from user_service.commands import Commands
from user_service.operations import credit_check
from user_service.passwords import Passwords
from user_service.queries import Queries
from user_service.rpc import ACTS_FOR, SERVICE, UserRpc
from user_service.settings import Settings
from user_service.user_repository import PostgresUserRepository

# Not limited: passwords have their own queue, and a release makes room for others.
_EXEMPT = ("RegisterUser", "CreateSession", "ReleaseCredit")


async def compose(process: Process[Settings]) -> None:
    """Creates the parts, connects them and serves until the process stops."""
    database = await Database.open(process, name="user_service")
    await database.migrate("user_service")
    repository = PostgresUserRepository(database)
    secret = await process.vault.read_secret("user-service")
    passwords = Passwords(process.settings, secret["password_pepper"].encode())
    commands = Commands(repository, passwords, AccessTokenIssuer(process.vault), process.settings)
    rpc = UserRpc(commands, Queries(repository))

    def register(grpc_server: grpc.aio.Server) -> None:
        add_UserServiceServicer_to_server(rpc, grpc_server)

    limits = process.settings.section(lambda settings: settings.limiter)
    exempt = [f"/{SERVICE}/{method}" for method in _EXEMPT]
    users = ActingUsers(rules_of(SERVICE, ACTS_FOR), AccessTokenFormat())
    await server.serve(process, register, [SERVICE], limiter_settings=limits, exempt=exempt, users=users)


def main() -> None:
    """Runs the command that the arguments name."""
    match sys.argv[1:]:
        case []:
            process.run("user-service", Settings, compose)
        case ["audit"]:
            process.run("user-service", Settings, credit_check.compose)
        case _:
            sys.exit("usage: user-service.pyz [audit]")


if __name__ == "__main__":
    main()
