"""Metrics of this process: histograms and counters for the hot path, and gauges that read live objects.

An instrument of the OpenTelemetry SDK copies, sorts and hashes the attributes at each call. `Durations` and `Counts` do
this once for each series; `chassis.telemetry.export` adds their values to what the SDK exports.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.trace import Span, TraceFlags, get_current_span

T = TypeVar("T")
Attributes = Mapping[str, str | int]

SCOPE = "waypost"
BOUNDS = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0)
"""The upper bounds of a histogram's buckets that the OpenTelemetry specification gives as default."""
_SERIES_AT_MOST = 2000
_OVERFLOW: Attributes = {"otel.metric.overflow": True}
"""The series of all further attributes, as the OpenTelemetry specification names it."""


def meter() -> metrics.Meter:
    """Returns the meter of this process; it records nothing before `chassis.telemetry.export.start`."""
    return metrics.get_meter(SCOPE)


class DurationSeries:
    """The values of a histogram that have the same attributes. Threads may record while another one collects."""

    __slots__ = ("_began", "_bounds", "_counts", "_exemplars", "_greatest", "_least", "_lock", "_sum", "attributes")

    def __init__(self, attributes: Attributes, bounds: Sequence[float]) -> None:
        self.attributes = dict(attributes)
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._least = float("inf")
        self._greatest = float("-inf")
        self._exemplars: dict[int, Exemplar] = {}
        self._began = time.time_ns()
        self._lock = Lock()

    def record(self, value: float, span: Span | None = None) -> None:
        """Adds a value, which becomes an exemplar if the trace of `span`, by default the current span, is recorded.

        A negative value, of a clock that was set back, is dropped.
        """
        if value < 0:
            return
        bucket = bisect_left(self._bounds, value)
        context = (get_current_span() if span is None else span).get_span_context()
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value
            self._least = min(self._least, value)
            self._greatest = max(self._greatest, value)
            if context.trace_flags & TraceFlags.SAMPLED:
                self._exemplars[bucket] = Exemplar({}, value, time.time_ns(), context.span_id, context.trace_id)

    def point(self, now: int) -> HistogramDataPoint | None:
        """Returns all values so far and the exemplars since the last call, None before the first value."""
        with self._lock:
            counts, total, least, greatest = self._counts.copy(), self._sum, self._least, self._greatest
            exemplars, self._exemplars = self._exemplars, {}
        if not any(counts):
            return None
        return HistogramDataPoint(
            attributes=self.attributes,
            start_time_unix_nano=self._began,
            time_unix_nano=now,
            count=sum(counts),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=self._bounds,
            min=least,
            max=greatest,
            exemplars=[exemplars[bucket] for bucket in sorted(exemplars)],
        )


class CountSeries:
    """A count of events that have the same attributes. Threads may add while another one collects."""

    __slots__ = ("_began", "_count", "_lock", "attributes")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = dict(attributes)
        self._count = 0
        self._began = time.time_ns()
        self._lock = Lock()

    def add(self, amount: int) -> None:
        """Adds an amount, 0 or more."""
        with self._lock:
            self._count += amount

    def point(self, now: int) -> NumberDataPoint | None:
        """Returns the count so far, None if it is 0."""
        return NumberDataPoint(self.attributes, self._began, now, self._count) if self._count else None


S = TypeVar("S", DurationSeries, CountSeries)


class _Instrument(Generic[S]):
    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name = name
        self._unit = unit
        self._description = description
        self._series: dict[frozenset[tuple[str, str | int]], S] = {}
        _instruments.append(self)

    def series(self, attributes: Attributes) -> S:
        """Returns the series of these attributes, the same one at each call; keep it to record quickly."""
        key = frozenset(attributes.items())
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= _SERIES_AT_MOST and attributes is not _OVERFLOW:
                return self.series(_OVERFLOW)
            found = self._series.setdefault(key, self._new(attributes))
        return found

    def metric(self, now: int) -> Metric | None:
        """Returns all series in the form of the SDK at a time in nanoseconds, None if there are no values."""
        points = [point for point in (series.point(now) for series in list(self._series.values())) if point]
        return Metric(self.name, self._description, self._unit, self._data(points)) if points else None

    @abstractmethod
    def _new(self, attributes: Attributes) -> S: ...

    @abstractmethod
    def _data(self, points: Sequence[HistogramDataPoint | NumberDataPoint]) -> Histogram | Sum: ...


_instruments: list[_Instrument[DurationSeries] | _Instrument[CountSeries]] = []


class Durations(_Instrument[DurationSeries]):
    """A histogram whose series are made once."""

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float] = BOUNDS) -> None:
        super().__init__(name, unit, description)
        self._bounds = tuple(bounds)

    def _new(self, attributes: Attributes) -> DurationSeries:
        return DurationSeries(attributes, self._bounds)

    def _data(self, points: Sequence[HistogramDataPoint | NumberDataPoint]) -> Histogram:
        return Histogram([p for p in points if isinstance(p, HistogramDataPoint)], AggregationTemporality.CUMULATIVE)


class Counts(_Instrument[CountSeries]):
    """A counter whose series are made once."""

    def _new(self, attributes: Attributes) -> CountSeries:
        return CountSeries(attributes)

    def _data(self, points: Sequence[HistogramDataPoint | NumberDataPoint]) -> Sum:
        numbers = [p for p in points if isinstance(p, NumberDataPoint)]
        return Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)


def collect(now: int) -> list[Metric]:
    """Returns the metrics of all `Durations` and `Counts` that have values, at a time in nanoseconds."""
    return [metric for metric in (instrument.metric(now) for instrument in _instruments) if metric]


class LiveGauges(Generic[T]):
    """Gauges over all live objects of one kind: `add` each object when it is made, then declare gauges with `gauge`.

    Each object gives one series, whose `attribute` is `label(object)`. The objects are held weakly: one that is no
    longer used leaves the metric when it is collected, or at once with `remove`.
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

    def remove(self, item: T) -> None:
        """Leaves an object out of every gauge from now on."""
        with self._lock:
            self._objects.discard(item)

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
