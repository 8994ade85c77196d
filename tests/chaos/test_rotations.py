"""Hypothesis: a database login, or a certificate of the mesh, is replaced before it ends, and no request fails.

Fault: both live for seconds instead of an hour, under open-loop load. Observed: every answer, the database users of the
services, and the certificates in their logs. Harder, and the control that a login can end: all logins of a service are
revoked.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.cluster_faults import replace
from support.database_access import connect
from support.kv_settings import changed_settings
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

from stack.mesh.dial import is_on, names

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


@pytest.mark.parametrize(("rotations", "ttl"), [(2, 30), pytest.param(20, 60, marks=pytest.mark.long)])
def test_while_certificates_of_the_mesh_are_replaced_no_request_fails(
    running: RunningStack, placing: Callable[[int], Request], rotations: int, ttl: int
) -> None:
    outside = [name for name in names() if not is_on(running.clients, name)]
    if outside:
        pytest.skip(f"not in the mesh (nomad/jobs/*.vars.hcl): {', '.join(outside)}")
    jobs, began = ("gateway", *ROLES), time.time()
    short = {"mesh": {"leaf_seconds": float(ttl)}}

    def issued(job: str) -> int:
        """The certificates of the instance that has had the fewest."""
        return min(len(times) for times in running.logged(job, began, "certificate of the mesh issued"))

    with ExitStack() as changed:
        for job in jobs:
            changed.enter_context(changed_settings(running, job, short))
        with Load(running.url("gateway"), 40, placing) as load:
            enough = lambda: all(issued(job) > rotations for job in jobs)  # noqa: E731 - the first one is the change
            eventually(f"each process has had {rotations} certificates", enough, rotations * ttl + 60, every=2)
    counts = ", ".join(f"{issued(job)} certificates of each {job}" for job in jobs)
    print(f"{rotations} rotations of certificates of {ttl} s: {counts}; {load.report()}")
    assert load.failures == []


@pytest.mark.parametrize(("rotations", "ttl"), [(3, 20), pytest.param(20, 20, marks=pytest.mark.long)])
def test_while_the_certificate_of_the_edge_is_replaced_no_request_fails(
    running: RunningStack, placing: Callable[[int], Request], rotations: int, ttl: int
) -> None:
    """Neither by https, which shows the certificate to callers, nor in plaintext; gateways see it in both cases."""
    if not is_on(running.clients, "edge"):
        pytest.skip("not in the mesh (nomad/jobs/*.vars.hcl): edge")
    roots = "".join(root["RootCert"] for root in running.clients.consul.connect.certificates.list()["Roots"])
    context, shown = ssl.create_default_context(cadata=roots), set[str]()

    def replaced() -> bool:
        shown.add(_shown_certificate(running, context))
        return len(shown) > rotations

    with _short_edge_certificates(running, ttl), ExitStack() as sending:
        plain = sending.enter_context(Load(running.url("gateway"), 10, placing))
        encrypted = sending.enter_context(Load(running.url("gateway_https"), 10, placing, context))
        eventually(f"the edge has had {rotations} new certificates", replaced, rotations * ttl + 60, every=0.5)
        enough = len(encrypted.answers) + ttl * 10
        eventually("the first certificates have ended", lambda: len(encrypted.answers) > enough, 2 * ttl)
    for port, load in (("http", plain), ("https", encrypted)):
        print(f"{len(shown) - 1} rotations of the certificate of the edge, {ttl} s each, {port}: {load.report()}")
    assert plain.failures + encrypted.failures == []


def test_revoked_logins_are_replaced_within_ten_seconds(
    running: RunningStack, placing: Callable[[int], Request]
) -> None:
    """As an operator does after a leak: `bao lease revoke -prefix database/creds/order-service`."""
    before = {role: _names(running, role) for role in ROLES}
    with Load(running.url("gateway"), 30, placing) as load:
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


def _shown_certificate(running: RunningStack, context: ssl.SSLContext) -> str:
    """The number of the certificate that the edge shows to a new connection."""
    address = ("127.0.0.1", running.stack.port("gateway_https"))
    with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="localhost") as found:
        certificate: dict[str, Any] = found.getpeercert() or {}
        return str(certificate["serialNumber"])


@contextmanager
def _short_edge_certificates(running: RunningStack, ttl: int) -> Iterator[None]:
    """Makes the certificates of the edge last `ttl` seconds, half of which is over when Nomad gets another one."""
    vault = running.clients.vault
    before = vault.read("mesh/roles/edge")["data"]
    short = {"ttl": ttl, "max_ttl": ttl, "not_before_duration": 4 * ttl}
    try:
        vault.write_data("mesh/roles/edge", data=before | short)
        replace(running, "edge")
        yield
    finally:
        vault.write_data("mesh/roles/edge", data=before)
        replace(running, "edge")


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
