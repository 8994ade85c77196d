"""`audit`: checks the tables of the User Service, and prints the credit that each order holds.

Reads one snapshot and changes nothing, a few rows at a time. Prints JSON lines: each `finding`, `user` and
`reservation`, and `counts` at the end. `stack.operations.consistency_check` compares them with the orders.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from chassis.postgres.database import Database
from chassis.process import Process
from user_service.settings import Settings

_USERS: LiteralString = """
    SELECT users.id, users.held, coalesce(reserved.total, 0) AS reserved FROM users LEFT JOIN (
        SELECT user_id, sum(amount) AS total FROM reservations WHERE state = 'held' GROUP BY user_id
    ) AS reserved ON reserved.user_id = users.id"""
_REPAIR = "find out which program wrote to table users, then: UPDATE users SET held = {reserved} WHERE id = '{user_id}'"
_FETCH_SIZE = 2000
_RESERVATIONS: LiteralString = "SELECT order_id, user_id, amount, state FROM reservations"


async def compose(process: Process[Settings]) -> int:
    """Prints the report; returns 0 whatever it contains, because the comparison decides."""
    await report(await Database.open(process, name="user_service"))
    return 0


async def report(database: Database) -> None:
    """Prints the findings, all users and all reservations."""
    users = reservations = 0
    async with database.connection() as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        async for user in _select(connection, "users", _USERS):
            users += 1
            if user["held"] != user["reserved"]:
                _print("finding", **_wrong_sum(user["id"], user["held"], user["reserved"]))
            _print("user", id=str(user["id"]))
        async for row in _select(connection, "reservations", _RESERVATIONS):
            reservations += 1
            ids = {"order_id": str(row["order_id"]), "user_id": str(row["user_id"])}
            _print("reservation", **ids, amount=row["amount"], state=row["state"])
    _print("counts", users=users, reservations=reservations)


async def _select(connection: AsyncConnection[DictRow], name: str, query: LiteralString) -> AsyncIterator[DictRow]:
    async with connection.cursor(name=name) as cursor:
        cursor.itersize = _FETCH_SIZE
        await cursor.execute(query)
        async for row in cursor:
            yield row


def _wrong_sum(user_id: object, held: int, reserved: int) -> dict[str, str]:
    return {
        "order": "",
        "rule": f"user {user_id}",
        "found": f"held = {held}",
        "wanted": f"held = {reserved}, the sum of its reservations",
        "next": _REPAIR.format(reserved=reserved, user_id=user_id),
    }


def _print(kind: str, **fields: Any) -> None:
    print(json.dumps({kind: fields}))  # noqa: T201 - the output of an operator's command
