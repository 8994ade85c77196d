"""Hypothesis: certificates of the mesh and their authority are replaced under load, and no request fails.

Fault: certificates live for seconds instead of an hour; meanwhile root and intermediate are replaced by a command that
is killed half-way and run again. Observed: every answer, and the certificates in the logs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support.operator_commands import run, words
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

from stack.config import ROOT

from .short_leaves import short_leaves

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("healthy")]


@pytest.mark.parametrize(("rotations", "ttl"), [(2, 30), pytest.param(20, 60, marks=pytest.mark.long)])
def test_while_certificates_and_their_authority_are_replaced_no_request_fails(
    running: RunningStack, placing: Callable[[int], Request], rotations: int, ttl: int
) -> None:
    before = roots(running)
    with short_leaves(running, ttl) as leaves, Load(running.url("gateway"), 40, placing) as load:
        eventually("each process has had a certificate", lambda: leaves.fewest() > rotations / 2, rotations * ttl, 2)
        begin_rotation(running, before["ActiveRootID"])
        done = run("rotate", "mesh-ca")
        assert done.returncode == 0, done.stdout + done.stderr
        eventually("it has had all others", lambda: leaves.fewest() > rotations, rotations * ttl + 60, 2)
    after = roots(running)
    assert after["ActiveRootID"] not in {root["ID"] for root in before["Roots"]}
    assert len(after["Roots"]) == len(before["Roots"]) + 1, "the old root is trusted, and there is one new one"
    assert "the last rotation was interrupted" in done.stdout
    print(f"{rotations} rotations of certificates of {ttl} s, and one of the root: {load.report()}")
    assert load.failures == []
    plan = run("plan")
    assert plan.returncode == 0, plan.stdout


def begin_rotation(running: RunningStack, active: str) -> None:
    """Kills the command once Consul uses another root than the active one."""
    with subprocess.Popen(words("rotate", "mesh-ca"), cwd=ROOT, stdout=subprocess.DEVNULL) as command:
        eventually("there is a new root", lambda: roots(running)["ActiveRootID"] != active, 30, 0.02)
        command.kill()


def roots(running: RunningStack) -> dict[str, Any]:
    found: dict[str, Any] = running.clients.consul.connect.certificates.list()
    return found
