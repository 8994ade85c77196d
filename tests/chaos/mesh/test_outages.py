"""Hypothesis: calls of the mesh need neither Consul nor OpenBao while certificates last.

Fault: Consul is killed and stays down, OpenBao rejects everything, while certificates live for minutes instead of an
hour, so that they are due meanwhile. Observed: every answer. Control: the agent does not work.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from support.chaos_command import Chaos
from support.stack_under_test import RunningStack, eventually
from support.traffic.load import Load, Request

from .short_leaves import short_leaves

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("healthy")]
FAULTS = {"consul": "consul down", "vault": "vault sealed"}
HEALTH = {"consul": "/v1/status/leader", "vault": "/v1/sys/health"}


# A certificate has 40 % of its time left when it is due, and a failed request for one is repeated within ten seconds.
@pytest.mark.parametrize(
    ("agents", "times"),
    [
        pytest.param(["consul", "vault"], (12, 60), id="both"),
        pytest.param(["consul"], (60, 60), id="consul", marks=pytest.mark.long),
        pytest.param(["vault"], (100, 300), id="vault", marks=pytest.mark.long),
    ],
)
def test_while_an_agent_is_down_for_less_than_a_certificate_lasts_no_request_fails(
    running: RunningStack, chaos: Chaos, placing: Callable[[int], Request], agents: list[str], times: tuple[int, int]
) -> None:
    """`times` are the seconds of the outage, and those of a certificate."""
    outage, ttl = times
    with short_leaves(running, ttl) as leaves, Load(running.url("gateway"), 40, placing) as load:
        eventually("each process has a short certificate", lambda: leaves.fewest() > 0, 60, 1)
        for agent in agents:
            chaos.start(FAULTS[agent], outage)
        assert [agent for agent in agents if works(running, agent)] == []
        before = leaves.fewest()
        chaos.wait_until_over(outage + 60)
        eventually("each process has further ones", lambda: leaves.fewest() > before, ttl + 60, 1)
        running.wait_until_healthy()
    print(f"{' and '.join(agents)} down for {outage} s, certificates of {ttl} s: {load.report()}")
    assert load.failures == []


def works(running: RunningStack, agent: str) -> bool:
    try:
        return httpx.get(running.url(agent) + HEALTH[agent], timeout=5).is_success
    except httpx.TransportError:
        return False
