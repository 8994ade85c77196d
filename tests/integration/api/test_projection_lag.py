"""Lists lag behind events by a moment, and the lag is a metric."""

from __future__ import annotations

import pytest
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser
from support.traffic.performance_targets import Effort, efforts
from support.traffic.projection_lag import TARGET_RATE, TARGET_SECONDS, measure

from stack import telemetry_viewer

BOUND_SECONDS = 10.0


@efforts(4, 20)
def test_under_a_load_of_orders_events_become_visible_within_ten_seconds(
    running: RunningStack, user: ApiUser, effort: Effort
) -> None:
    """With `-m long`, at the rate and within the seconds of the target."""
    running.wait_until_healthy()
    rate = effort.bound(TARGET_RATE, 20)
    found = measure(running, user, rate=rate, seconds=effort.amount)
    print(found)
    assert len(found.seconds) >= rate * effort.amount
    assert found.quantile(0.99) <= effort.bound(TARGET_SECONDS, BOUND_SECONDS)
    assert found.rate >= effort.bound(0.98, 0.25) * rate


@pytest.fixture
def telemetry(running: RunningStack) -> None:
    if "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")


@pytest.mark.usefixtures("telemetry")
def test_telemetry_has_the_leader_and_its_lag(running: RunningStack) -> None:
    def last(name: str) -> dict[str, float]:
        return telemetry_viewer.last_values(running.stack, name, "order-service")

    eventually("one of two workers leads", lambda: sorted(last("worker.leader").values()) == [0, 1], 60, every=1)
    wanted = {"projection=orders", "projection=outbox"}
    eventually("every projection reports its lag", lambda: wanted <= last("projection.lag.events").keys(), 60, every=1)
    for name in ("outbox.pending", "outbox.oldest.seconds"):
        assert eventually(f"{name} is reported", lambda: list(last(name).values()), 60, every=1)[0] >= 0  # noqa: B023


@pytest.mark.usefixtures("telemetry")
def test_status_shows_the_workers_and_their_lag(running: RunningStack) -> None:
    def shown() -> bool:
        output = run("status").stdout
        return all(words in output for words in ("leader", "standby", "events behind", "pending, the oldest for"))

    eventually("status shows them", shown, 60, every=1)
