"""Keeps what the services report about orders and credit in a temporary SQLite database on disk, and joins it.

So the memory in use does not grow with the number of orders. SQLite deletes the file when it is closed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]

_TABLES = """
CREATE TABLE orders (
    id TEXT PRIMARY KEY, user_id TEXT, status TEXT, currency TEXT, total INTEGER, pending TEXT) WITHOUT ROWID;
CREATE TABLE reservations (order_id TEXT PRIMARY KEY, user_id TEXT, amount INTEGER, state TEXT) WITHOUT ROWID;
CREATE TABLE users (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_INSERTS = {
    "order": "INSERT OR REPLACE INTO orders VALUES (:id, :user_id, :status, :currency, :total, :pending)",
    "reservation": "INSERT OR REPLACE INTO reservations VALUES (:order_id, :user_id, :amount, :state)",
    "user": "INSERT OR REPLACE INTO users VALUES (:id)",
}
_ORDERS = """
SELECT orders.id, orders.user_id, orders.status, orders.currency, orders.total, orders.pending,
       users.id IS NOT NULL AS known_user,
       reservations.order_id, reservations.user_id AS holder, reservations.amount, reservations.state
FROM orders LEFT JOIN reservations ON reservations.order_id = orders.id LEFT JOIN users ON users.id = orders.user_id
ORDER BY orders.id"""
_WITHOUT_ORDER = """
SELECT order_id, user_id, amount, state FROM reservations
WHERE state = 'held' AND order_id NOT IN (SELECT id FROM orders) ORDER BY order_id"""
_COUNTS = """
SELECT (SELECT count(*) FROM orders) AS orders,
       (SELECT count(*) FROM orders WHERE status = 'pending' OR pending <> '[]') AS in_progress,
       (SELECT count(*) FROM reservations) AS reservations, (SELECT count(*) FROM users) AS users"""


class Reports:
    """The lines of one report of each service; findings and counts of the services are kept as they are."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # an empty name is a temporary file
        self._database.row_factory = sqlite3.Row
        self._database.executescript(_TABLES)
        self.findings: list[Row] = []
        self._counts: dict[str, int] = {}

    def add(self, lines: Iterable[Row]) -> None:
        """Adds lines of a report, each an object with one key: its kind."""
        with self._database:
            for line in lines:
                for kind, entry in line.items():
                    self._add(kind, entry)

    def orders(self) -> Iterator[tuple[Row, Row | None, bool]]:
        """Yields each order, its reservation, and whether the User Service knows its user."""
        for row in self._database.execute(_ORDERS):
            order = {name: row[name] for name in ("id", "user_id", "status", "currency", "total")}
            order["pending"] = json.loads(row["pending"])
            reservation = {"user_id": row["holder"], "amount": row["amount"], "state": row["state"]}
            yield order, reservation if row["order_id"] else None, bool(row["known_user"])

    def held_without_order(self) -> Iterator[Row]:
        """Yields reservations that hold credit for an order that is not there."""
        for row in self._database.execute(_WITHOUT_ORDER):
            yield dict(row)

    def counts(self) -> dict[str, int]:
        """Returns the counts of the services, and those of the lines: orders, in_progress, reservations, users."""
        return self._counts | dict(self._database.execute(_COUNTS).fetchone())

    def close(self) -> None:
        """Deletes the database."""
        self._database.close()

    def _add(self, kind: str, entry: Row) -> None:
        if kind == "finding":
            self.findings.append(entry)
        elif kind == "counts":
            self._counts |= entry
        elif statement := _INSERTS.get(kind):
            pending = json.dumps(entry.get("pending", []))
            self._database.execute(statement, entry | {"pending": pending})
