"""Superuser access to the databases of the running stack, to check their rows and to plant damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from support.stack_under_test import RunningStack


@contextmanager
def connect(running: RunningStack, service: str) -> Iterator[psycopg.Connection[Any]]:
    """Connects to the database of a service by the socket that only the owner of the stack can open."""
    folder, port = running.stack.state / "postgres" / "run", running.stack.port("postgres")
    with psycopg.connect(host=str(folder), port=port, user="postgres", dbname=service, autocommit=True) as connection:
        connection.execute(f"SET search_path = {service}".encode())
        yield connection


def execute(running: RunningStack, service: str, statement: str, *values: object) -> int:
    """Runs a statement; returns the number of rows it changed."""
    with connect(running, service) as connection:
        return connection.execute(statement.encode(), values).rowcount


def query_value(running: RunningStack, service: str, statement: str, *values: object) -> Any:
    """Runs a query; returns the first column of the first row, or None."""
    with connect(running, service) as connection:
        row = connection.execute(statement.encode(), values).fetchone()
    return row[0] if row else None
