"""CPU time from /proc, interleaved rounds, and the figures that are made of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from bench.measurement.cpu import cpu_seconds, cpu_seconds_each
from bench.measurement.rounds import Measurement, Spread, Visit, abba
from bench.measurement.stack_parts import OTHER, part_of


def test_the_cpu_time_of_a_process_is_that_of_its_threads() -> None:
    before, began = cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - began < 0.2:
        pass
    assert cpu_seconds([os.getpid()]) - before == pytest.approx(0.2, abs=0.05)


def test_a_process_that_has_ended_spoils_a_measurement() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pid = process.pid
    with pytest.raises(FileNotFoundError):
        cpu_seconds([os.getpid(), pid])
    assert set(cpu_seconds_each([os.getpid(), pid])) == {os.getpid()}


def test_each_round_goes_forward_and_back() -> None:
    assert "".join(name for _, name in abba(["a", "b", "c"], 2)) == "abccba" * 2
    assert [number for number, _ in abba(["a", "b"], 2)] == [0] * 4 + [1] * 4


def test_a_drift_of_the_machine_changes_no_ratio() -> None:
    """Each visit costs more than the one before; the second way costs twice the first one."""
    slowness = iter(range(100, 1000))

    def visit(cost: float) -> Visit:
        return Visit(1000, 1.0, {"part": cost * next(slowness)})

    found = Measurement.run({"one": lambda: visit(1.0), "two": lambda: visit(2.0)}, rounds=3)
    assert len(found.visits["one"]) == 6
    ratio = found.ratio("two", "one", lambda each: each.microseconds("part"))
    assert (ratio.lowest, ratio.median, ratio.highest) == pytest.approx((2.0, 2.0, 2.0))


def test_figures_are_medians_with_their_spread() -> None:
    visits = [Visit(1000, 2.0, {"part": seconds}) for seconds in (0.3, 0.1, 0.2, 0.9)]
    found = Measurement({"one": visits})
    assert found.microseconds("one", "part") == Spread(250.0, 100.0, 900.0)
    assert found.rate("one").median == 500.0
    assert found.microseconds("one", "part").text() == "250 (100 to 900)"
    assert "median (lowest to highest) of 4 visits each; 4,000 to 4,000 requests" in found.table("part")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("/x/.venv/bin/python -I -S local/order-service.pyz worker", "order-service worker"),
        ("/x/.venv/bin/python -I -S local/order-service.pyz", "order-service"),
        ("/x/.venv/bin/python -I -S local/gateway.pyz", "gateway"),
        ("/x/envoy/_bin/envoy --config-path local/envoy.yaml", "edge"),
        ("/x/python -I -S local/drained_envoy.py secrets/admin.sock 10 /x/envoy", "edge"),
        ("postgres: order_service v_1 127.0.0.1(4711) idle", "Postgres"),
        ("/x/tools/consul-1.22/consul agent -config-dir x", "Consul"),
        ("/x/tools/nomad-1.11/nomad agent -config /x", "Nomad"),
        ("/x/tools/nomad-1.11/nomad executor {}", "Nomad"),
        ("/x/.venv/bin/bao server -config x", "OpenBao"),
        ("/bin/sh -c trap", OTHER),
    ],
)
def test_a_process_belongs_to_a_part_by_its_command_line(command: str, part: str) -> None:
    assert part_of(command) == part
