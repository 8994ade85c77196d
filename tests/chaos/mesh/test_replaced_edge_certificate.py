"""Hypothesis: the certificate of the edge is replaced under load, and no request fails.

Fault: it lives for seconds instead of an hour. Observed: every answer, in plaintext and by https, and the certificates
that callers see.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.cluster_faults import replace
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("healthy")]


@pytest.mark.parametrize(("rotations", "ttl"), [(3, 20), pytest.param(20, 20, marks=pytest.mark.long)])
def test_while_the_certificate_of_the_edge_is_replaced_no_request_fails(
    running: RunningStack, placing: Callable[[int], Request], rotations: int, ttl: int
) -> None:
    """Neither by https, which shows the certificate to callers, nor in plaintext; gateways see it in both cases."""
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
