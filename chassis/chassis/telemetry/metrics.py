"""Metrics of this process, and gauges that read their values from live objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

T = TypeVar("T")


def meter() -> metrics.Meter:
    """Returns the meter of this process; it records nothing before `chassis.telemetry.export.start`."""
    return metrics.get_meter("waypost")


class LiveGauges(Generic[T]):
    """Gauges over all live objects of one kind: `add` each object when it is made, then declare gauges with `gauge`.

    Each object gives one series, whose `attribute` is `label(object)`. The objects are held weakly: one that is no
    longer used leaves the metric.
    """

    def __init__(self, attribute: str, label: Callable[[T], str]) -> None:
        self._attribute = attribute
        self._label = label
        self._objects: WeakSet[T] = WeakSet()
        self._lock = Lock()

    def add(self, item: T) -> None:
        """Includes an object in every gauge from now on."""
        with self._lock:
            self._objects.add(item)

    def gauge(self, name: str, read: Callable[[T], float], description: str) -> None:
        """Registers a gauge whose value for each object is `read(object)`."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return self.observations(read)

        meter().create_observable_gauge(name, [observe], "1", description)

    def observations(self, read: Callable[[T], float]) -> list[Observation]:
        """Reads one value of each live object. The exporter calls this in a thread of its own."""
        with self._lock:
            items = list(self._objects)
        return [Observation(read(item), {self._attribute: self._label(item)}) for item in items]
