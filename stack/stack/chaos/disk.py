"""A full disk as the clients of Postgres see it: every new row is refused with the error that a full disk gives.

The real thing needs a file system of its own, and with it root; see the decision in `docs/adr/` for what was tried.
Where the tests run as root, one of them has a disk that is really full, and compares.
"""

from __future__ import annotations

import subprocess

from stack.build import tools
from stack.config import Stack
from stack.console import StackError

_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres'"
FILL = """
SET lock_timeout = '5s'; SET client_min_messages = warning;
CREATE OR REPLACE FUNCTION public.chaos_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'could not extend file "%": No space left on device', TG_RELID::regclass
    USING ERRCODE = 'disk_full', HINT = 'Check free disk space.';
END $$;
DO $$
DECLARE found regclass;
BEGIN
  FOR found IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  LOOP
    EXECUTE format('CREATE OR REPLACE TRIGGER chaos_disk_full BEFORE INSERT OR UPDATE ON %s
      FOR EACH STATEMENT EXECUTE FUNCTION public.chaos_disk_full()', found);
  END LOOP;
END $$;
"""
CLEAR = """
SET lock_timeout = '5s'; SET client_min_messages = warning;
DROP FUNCTION IF EXISTS public.chaos_disk_full() CASCADE;
"""


def fill(stack: Stack) -> None:
    """No table of a service takes a new row or another version of one."""
    for database in _sql(stack, "postgres", _DATABASES).split():
        _sql(stack, database, FILL)


def clear(stack: Stack) -> None:
    """Every table takes rows again, also one that always did."""
    for database in _sql(stack, "postgres", _DATABASES).split():
        _sql(stack, database, CLEAR)


def _sql(stack: Stack, database: str, statements: str) -> str:
    """What the superuser gets, who comes by the socket that only the owner of the stack can reach."""
    psql = tools.ensure().postgres_bin / "psql"
    where = ["-h", str(stack.state / "postgres" / "run"), "-p", str(stack.port("postgres")), "-U", "postgres"]
    command = [str(psql), "-XqAt1", "-v", "ON_ERROR_STOP=1", *where, "-d", database, "-f", "-"]
    done = subprocess.run(command, input=statements, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise StackError(f"Postgres refuses in {database}", done.stderr.strip()[:300], "./justw logs postgres")
    return done.stdout
