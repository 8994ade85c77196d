"""`projection-rebuild orders`: rebuilds the read table from the events while users read it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from support.database_access import connect, execute, query_value
from support.operator_commands import run, words
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from stack.config import ROOT
from stack.machine import processes

HOLD = "SELECT pg_advisory_xact_lock(hashtext('order_service'), hashtext('orders'))"
WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
IN_PROGRESS = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
               AND objid = (hashtext('rebuild orders')::bigint & 4294967295)::oid"""
SHADOW = "SELECT count(*) FROM pg_class WHERE relname = 'orders' AND relpersistence = 't'"


class Reader(threading.Thread):
    """Lists orders again and again; remembers every status that it got."""

    def __init__(self, user: ApiUser) -> None:
        super().__init__(daemon=True)
        self.user, self.stopping = user, threading.Event()
        self.statuses: list[int] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            self.statuses.append(self.user.get("/v1/orders").status_code)


@contextmanager
def reading(user: ApiUser) -> Iterator[Reader]:
    reader = Reader(user)
    reader.start()
    try:
        yield reader
    finally:
        reader.stopping.set()
        reader.join(20)


def listed(user: ApiUser) -> list[str]:
    return [order["id"] for order in user.get("/v1/orders").json()["items"]]


def rebuilt() -> str:
    done = run("projection-rebuild", "orders")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_damaged_table_is_rebuilt_from_the_events_while_reads_continue(running: RunningStack, user: ApiUser) -> None:
    orders = [user.settled(user.place().json()["id"])["id"] for _ in range(3)]
    eventually("they are listed", lambda: sorted(listed(user)) == sorted(orders))
    before = user.get("/v1/orders").json()
    execute(running, "order_service", "DELETE FROM orders WHERE id = %s", orders[0])
    execute(running, "order_service", "UPDATE orders SET status = 'rejected', total = 1 WHERE id = %s", orders[1])
    assert user.get("/v1/orders").json() != before
    with reading(user) as reader:
        output = rebuilt()
    assert user.get("/v1/orders").json() == before
    assert "equals a fold of all events" in output
    assert reader.statuses
    assert set(reader.statuses) == {httpx.codes.OK}
    print(f"{len(reader.statuses)} reads during a rebuild, all 200")


def test_a_rebuild_changes_no_correct_row_and_the_projection_continues(running: RunningStack, user: ApiUser) -> None:
    first = user.settled(user.place().json()["id"])["id"]
    indexes = "SELECT string_agg(indexdef, ';' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'orders'"
    before = query_value(running, "order_service", indexes)
    rebuilt()
    rebuilt()
    assert query_value(running, "order_service", indexes) == before
    second = user.settled(user.place().json()["id"])["id"]
    eventually("the projection continues", lambda: listed(user) == [second, first])


@pytest.mark.parametrize("name", ["outbox", "users"])
def test_a_table_that_cannot_be_rebuilt_is_an_error(running: RunningStack, name: str) -> None:
    done = run("projection-rebuild", name)
    assert done.returncode == 1
    assert f"projection {name!r} cannot be rebuilt" in done.stdout + done.stderr


@contextmanager
def waiting(running: RunningStack) -> Iterator[None]:
    """A rebuild that waits to switch over, because the projection is held; at the end it is killed."""
    with connect(running, "order_service") as holder, holder.transaction():
        holder.execute(HOLD)
        command = words("projection-rebuild", "orders")
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True) as started:
            try:
                eventually("it waits to switch over", lambda: query_value(running, "order_service", WAITS), 60)
                yield
            finally:
                kill(running)
                os.killpg(started.pid, signal.SIGKILL)


def kill(running: RunningStack) -> None:
    """End every rebuild inside the platform; its lock is free once the database has noticed."""
    for pid in rebuilding(running):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually("no rebuild is under way", lambda: not query_value(running, "order_service", IN_PROGRESS), 30)


def rebuilding(running: RunningStack) -> list[int]:
    folders = [running.folder(alloc, "order-service") for alloc in running.allocations("order-service", "worker")]
    return [pid for folder in folders for pid in processes.below(folder) if b"rebuild" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return (processes.PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_second_rebuild_at_the_same_time_is_an_error(running: RunningStack) -> None:
    with waiting(running):
        done = run("projection-rebuild", "orders")
    assert done.returncode == 1
    assert "another rebuild is under way" in done.stdout + done.stderr


def test_a_killed_rebuild_leaves_the_table_unchanged_and_the_next_one_starts_over(
    running: RunningStack, user: ApiUser
) -> None:
    with waiting(running):
        order = user.place().json()["id"]
        assert rebuilding(running)
        assert query_value(running, "order_service", SHADOW) == 1
        kill(running)
        eventually("its shadow is gone", lambda: query_value(running, "order_service", SHADOW) == 0)
        assert user.get("/v1/orders").status_code == httpx.codes.OK
    eventually("the projection continues", lambda: listed(user) == [order], 20)
    rebuilt()
    assert listed(user) == [order]
