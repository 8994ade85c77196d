"""Gauges over live objects."""

from __future__ import annotations

import gc

from chassis.telemetry.metrics import LiveGauges


class Queue:
    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self.length = length


def test_a_gauge_has_one_series_per_live_object() -> None:
    gauges: LiveGauges[Queue] = LiveGauges("queue.name", lambda queue: queue.name)
    kept, dropped = Queue("kept", 1), Queue("dropped", 2)
    gauges.add(kept)
    gauges.add(dropped)
    seen = gauges.observations(lambda queue: queue.length)
    assert {(str((each.attributes or {})["queue.name"]), each.value) for each in seen} == {("kept", 1), ("dropped", 2)}
    kept.length = 5
    del dropped
    gc.collect()
    (only,) = gauges.observations(lambda queue: queue.length)
    assert (only.attributes, only.value) == ({"queue.name": "kept"}, 5)
