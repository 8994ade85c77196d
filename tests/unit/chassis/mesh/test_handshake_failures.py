"""A refused handshake is counted by its reason and logged, and nothing else that a process writes is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.mesh.handshake_failures import reason

TESTS = Path(__file__).parents[3]
REASONS = {
    "wrong version number",  # plaintext
    "peer did not return a certificate",
    "unable to get local issuer certificate",
    "certificate has expired",
}


def test_each_refused_handshake_is_counted_and_logged_with_its_reason() -> None:
    command = [sys.executable, "-m", "unit.chassis.mesh.attacked_server"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60, check=True)
    *lines, counted = map(json.loads, done.stdout.splitlines())
    assert set(counted) == REASONS
    assert min(counted.values()) >= 1
    logged = [line["reason"] for line in lines if line["event"] == "a TLS handshake failed"]
    assert sorted(logged) == sorted(REASONS), "each reason once in ten seconds"
    assert sorted(done.stderr.splitlines()) == ["from Python", "from a library"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "I1 a.cc:9] Handshake failed with error SSL_ERROR_SSL: error:1:SSL:OPENSSL_internal:NO_CIPHER: x",
            "no cipher",
        ),
        ("Handshake failed with error E: OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: it has ended\n", "it has ended"),
        ("E1 a.cc:9] Fork support is only compatible with the epoll1 polling strategy", None),
        ("", None),
    ],
)
def test_the_reason_is_that_of_openssl(line: str, found: str | None) -> None:
    assert reason(line) == found
