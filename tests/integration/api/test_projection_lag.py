"""Lists are a moment behind, and how far is a metric."""

from __future__ import annotations

import pytest
from support.operator_commands import run
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import Person
from support.traffic.projection_lag import GOAL_RATE, GOAL_SECONDS, measure
from support.traffic.targets import Effort, efforts

from stack import telemetry_viewer

BOUND_SECONDS = 10.0


@efforts(4, 20)
def test_under_a_load_of_orders_events_are_visible_in_a_moment(
    running: RunningStack, person: Person, effort: Effort
) -> None:
    running.steady()
    rate = effort.bound(GOAL_RATE, 20)
    found = measure(running, person, rate=rate, seconds=effort.amount)
    print(found)
    assert len(found.seconds) >= rate * effort.amount
    assert found.quantile(0.99) <= effort.bound(GOAL_SECONDS, BOUND_SECONDS)
    assert found.rate >= effort.bound(0.98 * rate, 0)


@pytest.fixture
def telemetry(running: RunningStack) -> None:
    if "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")


@pytest.mark.usefixtures("telemetry")
def test_telemetry_knows_which_worker_is_active_and_how_far_it_is_behind(running: RunningStack) -> None:
    def last(name: str) -> dict[str, float]:
        return telemetry_viewer.last_values(running.stack, name, "order-service")

    eventually("one of two workers is active", lambda: sorted(last("worker.leader").values()) == [0, 1], 60, every=1)
    wanted = {"projection=orders", "projection=outbox"}
    eventually("the projections tell", lambda: wanted <= last("projection.lag.events").keys(), 60, every=1)
    for name in ("outbox.pending", "outbox.oldest.seconds"):
        assert eventually(f"{name} is told", lambda: list(last(name).values()), 60, every=1)[0] >= 0  # noqa: B023


@pytest.mark.usefixtures("telemetry")
def test_status_shows_it(running: RunningStack) -> None:
    def shown() -> bool:
        said = run("status").stdout
        return all(words in said for words in ("active", "stands by", "events behind", "open, the oldest for"))

    eventually("status shows the workers and their lag", shown, 60, every=1)
