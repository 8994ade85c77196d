"""Runs SQL as the superuser of Postgres, through the socket that only the owner of the stack can open."""

from __future__ import annotations

import subprocess
from pathlib import Path

from stack.config import Stack
from stack.console import StackError


def execute(stack: Stack, postgres_bin: Path, database: str, statements: str) -> str:
    """Returns the rows as text, a line each. Raises StackError if Postgres does not answer or rejects a statement.

    The statements are sent on standard input, so that no process list shows them.
    """
    where = ["-h", str(stack.state / "postgres" / "run"), "-p", str(stack.port("postgres")), "-U", "postgres"]
    command = [str(postgres_bin / "psql"), "-XqAt1", "-v", "ON_ERROR_STOP=1", *where, "-d", database, "-f", "-"]
    done = subprocess.run(command, input=statements, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        what = f"Postgres rejected the statement in database {database}"
        raise StackError(what, done.stderr.strip()[:300], "./justw logs postgres")
    return done.stdout
