"""Simulates a full disk: a trigger on every table of the services rejects new rows with Postgres' error `disk_full`.

Filling a real disk would need a separate file system and root to mount it (docs/adr/0014). A test that runs as root
does so and compares the errors.
"""

from __future__ import annotations

from stack.build import tools
from stack.config import Stack
from stack.machine import postgres_socket

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
    """Makes every INSERT and UPDATE in the databases of the services fail."""
    for database in _sql(stack, "postgres", _DATABASES).split():
        _sql(stack, database, FILL)


def clear(stack: Stack) -> None:
    """Undoes `fill`; does nothing in a database that was not filled."""
    for database in _sql(stack, "postgres", _DATABASES).split():
        _sql(stack, database, CLEAR)


def _sql(stack: Stack, database: str, statements: str) -> str:
    return postgres_socket.execute(stack, tools.ensure().postgres_bin, database, statements)
