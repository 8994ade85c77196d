"""`audit`: what this service can prove about its own tables, and what it holds for each order.

Reads one moment and changes nothing. Prints JSON lines: `finding`, `user` and `reservation` for each, `counts` at the
end. Who compares them with the orders stands outside of both services.
"""

from __future__ import annotations

import json
from typing import Any, LiteralString

from chassis.postgres.database import Database
from chassis.process import Process
from user_service.settings import Settings

_MEND = "UPDATE users SET held = {sum} WHERE id = '{user}', after looking for who wrote to table users"


async def compose(process: Process[Settings]) -> int:
    """Print all of it; 0, whatever is found: the one who compares decides."""
    database = await Database.open(process, name="user_service")
    async with database.connection() as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        users = await (await connection.execute(_USERS)).fetchall()
        reservations = await (await connection.execute(_RESERVATIONS)).fetchall()
    for user in users:
        if user["held"] != user["sum"]:
            wanted, mend = (
                f"held = {user['sum']}, the sum of its reservations",
                _MEND.format(sum=user["sum"], user=user["id"]),
            )
            _say(
                "finding", order="", rule=f"user {user['id']}", found=f"held = {user['held']}", wanted=wanted, next=mend
            )
        _say("user", id=str(user["id"]))
    for row in reservations:
        ids = {"order_id": str(row["order_id"]), "user_id": str(row["user_id"])}
        _say("reservation", **ids, amount=row["amount"], state=row["state"])
    _say("counts", users=len(users), reservations=len(reservations))
    return 0


_USERS: LiteralString = """
    SELECT id, held, coalesce((SELECT sum(amount) FROM reservations WHERE user_id = users.id AND state = 'held'), 0)
        AS sum FROM users"""
_RESERVATIONS: LiteralString = "SELECT order_id, user_id, amount, state FROM reservations"


def _say(what: str, **fields: Any) -> None:
    print(json.dumps({what: fields}))  # noqa: T201 - an operator's command
