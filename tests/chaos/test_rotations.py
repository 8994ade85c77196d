"""Hypothesis: a database login that ends is replaced before it does, and no request notices.

Fault: logins that live for seconds instead of an hour, under open-loop load. Observed: every answer, and under which
names the services are connected. Harder, and the control that a login can end at all: all are taken away at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.database_access import tables
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

ROLES = ("user-service", "order-service")
PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
NAMES = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s AND usename <> 'postgres'"

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("steady")]


@pytest.mark.parametrize(("rotations", "ttl"), [(1, 16), pytest.param(10, 60, marks=pytest.mark.long)])
def test_while_database_logins_are_replaced_no_request_fails(
    running: RunningStack, placing: Callable[[int], Request], rotations: int, ttl: int
) -> None:
    seen: dict[str, set[str]] = {role: set() for role in ROLES}
    wanted = {role: (1 + rotations) * len(running.pids(role)) for role in ROLES}

    def rotated() -> bool:
        for role in ROLES:
            seen[role] |= _names(running, role)
        return all(len(seen[role]) >= wanted[role] for role in ROLES)

    with _short_logins(running, ttl), Load(running.url("gateway"), 6, placing) as load:
        first = {role: _names(running, role) for role in ROLES}
        eventually(f"every process has had {rotations} fresh logins", rotated, 2 * rotations * ttl + 60, every=0.5)
        eventually("the first logins have ended", lambda: not _known(running, first), 2 * ttl + 30, every=0.5)
        enough = len(load.answers) + 12
        eventually("the load went on", lambda: len(load.answers) > enough, 30)
    counts = ", ".join(f"{len(names)} logins of {role}" for role, names in seen.items())
    print(f"{rotations} rotations of logins of {ttl} s: {counts}; {load.report()}")
    assert load.failures == []


def test_logins_that_are_taken_away_before_their_time_are_replaced_at_once(
    running: RunningStack, placing: Callable[[int], Request]
) -> None:
    """As who finds that one has leaked does: `bao lease revoke -prefix database/creds/order-service`."""
    before = {role: _names(running, role) for role in ROLES}
    with Load(running.url("gateway"), 30, placing) as load:
        eventually("the load flows", lambda: len(load.answers) > 30, 30)
        taken = time.time()
        running.clients.vault.sys.revoke_prefix("database/creds/order-service")
        eventually("others have come", lambda: _names(running, "order-service") - before["order-service"], 30)
        running.steady()
        enough = len(load.answers) + 60
        eventually("the load went on", lambda: len(load.answers) > enough, 30)
    back = load.regained(taken)
    print(f"logins taken away: goodput 95 % after {back:.1f} s; {load.report()}")
    assert back <= 10
    assert not _names(running, "order-service") & before["order-service"]
    assert not _names(running, "user-service") - before["user-service"]


def _names(running: RunningStack, role: str) -> set[str]:
    """The users as whom a service is connected now."""
    with tables(running, role.replace("-", "_")) as connection:
        return {str(row[0]) for row in connection.execute(NAMES, (role.replace("-", "_"),)).fetchall()}


def _known(running: RunningStack, logins: dict[str, set[str]]) -> int:
    """How many of these logins there still are."""
    names = sorted(set().union(*logins.values()))
    with tables(running, "order_service") as connection:
        return len(connection.execute("SELECT 1 FROM pg_roles WHERE rolname = ANY(%s)", (names,)).fetchall())


@contextmanager
def _short_logins(running: RunningStack, ttl: int) -> Iterator[None]:
    """Logins live for `ttl` seconds; a process gets one when it starts, so all start again, before and after."""
    vault = running.clients.vault
    before = {role: vault.read(f"database/roles/{role}")["data"] for role in ROLES}
    try:
        for role, data in before.items():
            vault.write_data(f"database/roles/{role}", data=data | {"default_ttl": ttl, "max_ttl": ttl})
        _start_again(running)
        yield
    finally:
        for role, data in before.items():
            vault.write_data(f"database/roles/{role}", data=data)
        _start_again(running)


def _start_again(running: RunningStack) -> None:
    before = {role: set(running.pids(role)) for role in ROLES}
    for pid in set().union(*before.values()):
        os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        now = {role: set(running.pids(role)) for role in ROLES}
        return all(len(now[role]) == len(before[role]) and not now[role] & before[role] for role in ROLES)

    eventually("every process runs again", again, 60, every=0.5)
    running.steady()
