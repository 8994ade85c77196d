"""Hypothesis: a database login is replaced before it ends, and no request fails.

Fault: logins live for seconds instead of an hour, under open-loop load. Observed: every answer, and the database users
of the services. Harder, and the control that a login can end: all logins of a service are revoked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.database_access import connect
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

ROLES = ("user-service", "order-service")
PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
NAMES = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s AND usename <> 'postgres'"

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("healthy")]


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


def test_revoked_logins_are_replaced_within_ten_seconds(
    running: RunningStack, placing: Callable[[int], Request]
) -> None:
    """As an operator does after a leak: `bao lease revoke -prefix database/creds/order-service`."""
    before = {role: _names(running, role) for role in ROLES}
    with Load(running.url("gateway"), 15, placing) as load:
        eventually("the load flows", lambda: len(load.answers) > 30, 30)
        taken = time.time()
        running.clients.vault.sys.revoke_prefix("database/creds/order-service")
        eventually("there are new logins", lambda: _names(running, "order-service") - before["order-service"], 30)
        running.wait_until_healthy()
        enough = len(load.answers) + 60
        eventually("the load went on", lambda: len(load.answers) > enough, 30)
    back = load.recovery_seconds(taken)
    print(f"logins revoked: goodput 95 % after {back:.1f} s; {load.report()}")
    assert back <= 10
    assert not _names(running, "order-service") & before["order-service"]
    assert not _names(running, "user-service") - before["user-service"]


def _names(running: RunningStack, role: str) -> set[str]:
    """The database users of a service's connections."""
    with connect(running, role.replace("-", "_")) as connection:
        return {str(row[0]) for row in connection.execute(NAMES, (role.replace("-", "_"),)).fetchall()}


def _known(running: RunningStack, logins: dict[str, set[str]]) -> int:
    """How many of these logins still exist."""
    names = sorted(set().union(*logins.values()))
    with connect(running, "order_service") as connection:
        return len(connection.execute("SELECT 1 FROM pg_roles WHERE rolname = ANY(%s)", (names,)).fetchall())


@contextmanager
def _short_logins(running: RunningStack, ttl: int) -> Iterator[None]:
    """Makes logins live for `ttl` seconds; restarts every process before and after, because it logs in at its start."""
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
    running.wait_until_healthy()
