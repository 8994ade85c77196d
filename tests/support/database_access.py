"""The tables of the running stack as a superuser sees them, to plant what no service would ever write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from support.stack_under_test import RunningStack


@contextmanager
def tables(running: RunningStack, service: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the database of a service, through the socket that only its owner and root can open."""
    folder, port = running.stack.state / "postgres" / "run", running.stack.port("postgres")
    with psycopg.connect(host=str(folder), port=port, user="postgres", dbname=service, autocommit=True) as connection:
        connection.execute(f"SET search_path = {service}".encode())
        yield connection


def change(running: RunningStack, service: str, statement: str, *values: object) -> int:
    """Run one statement; the number of rows it touched."""
    with tables(running, service) as connection:
        return connection.execute(statement.encode(), values).rowcount


def value(running: RunningStack, service: str, statement: str, *values: object) -> Any:
    """The first column of the first row."""
    with tables(running, service) as connection:
        row = connection.execute(statement.encode(), values).fetchone()
    return row[0] if row else None
