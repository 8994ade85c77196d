"""Client of the telemetry viewer: spans of a trace, the newest values of a metric, and how much counters increased.

fragile: viewer-json-rpc. The viewer's page uses this JSON-RPC itself; the viewer documents it nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from stack.config import Stack
from stack.console import StackError

# A process sends its metrics every thirty seconds; an older value comes from a process that has ended.
_FRESH_SECONDS = 45


@dataclass(frozen=True)
class Span:
    """One operation of a trace; times in nanoseconds since the epoch."""

    id: str
    parent: str | None
    name: str
    service: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]


def spans(stack: Stack, trace_id: str) -> list[Span]:
    """Returns every span of a trace that has arrived; raises StackError if the viewer does not answer."""
    try:
        result = _call(stack, "searchSpans", [trace_id])
    except (httpx.HTTPError, ValueError) as error:
        raise StackError("the telemetry UI does not answer", str(error), "./justw status") from error
    return [_span(row["spanData"]) for row in (result or {}).get("spans") or []]


def last_values(stack: Stack, name: str, service: str) -> dict[str, float]:
    """Returns the newest value of each series of a metric by its attributes ("projection=orders").

    Empty without a recent value, and without a viewer: a stack may run without one.
    """
    now = time.time_ns()
    period = [str(now - _FRESH_SECONDS * 10**9), str(now + 10**9)]
    try:
        summaries = _call(stack, "searchMetricSummaries", period) or []
        found = [row["id"] for row in summaries if (row["name"], row["serviceName"]) == (name, service)]
        metrics = [_call(stack, "getMetric", [metric_id, *period]) or {} for metric_id in found]
    except (httpx.HTTPError, ValueError):
        return {}
    series = [row for metric in metrics for row in metric.get("timeseries", [])]
    return {row["attributesKey"]: _newest(row["datapoints"]) for row in series if row["datapoints"]}


@dataclass(frozen=True)
class Increase:
    """How much a counter of a service has increased, by the attributes of the series, in all its instances together."""

    service: str
    attributes: dict[str, str]
    amount: int


def increases(stack: Stack, names: Sequence[str], seconds: float) -> dict[str, list[Increase]] | None:
    """Returns how much each series of some counters has increased in the last `seconds`; None without a viewer."""
    now = time.time_ns()
    since = now - int(seconds * 10**9)
    period = [str(since - _FRESH_SECONDS * 10**9), str(now + 10**9)]
    try:
        found = [row for row in _call(stack, "searchMetricSummaries", period) or [] if row["name"] in names]
        metrics = [(row, _call(stack, "getMetric", [row["id"], *period]) or {}) for row in found]
    except (httpx.HTTPError, ValueError):
        return None
    increased: dict[str, list[Increase]] = {name: [] for name in names}
    for row, metric in metrics:
        increased[row["name"]] += [
            Increase(row["serviceName"], _by_key(series["attributes"]), amount)
            for series in metric.get("timeseries", [])
            if (amount := _increase(series["datapoints"], since))
        ]
    return increased


def _increase(points: list[dict[str, Any]], since: int) -> int:
    """Returns the increase of a cumulative counter since a time (ns); each process has a start time of its own."""
    processes: dict[int, list[tuple[int, int]]] = {}
    for point in points:
        processes.setdefault(int(point["startTime"]), []).append((int(point["timestamp"]), int(point["intValue"])))
    total = 0
    for began, values in processes.items():
        before = [value for at, value in sorted(values) if at <= since]
        first = before[-1] if before else 0 if began > since else min(values)[1]
        total += max(values)[1] - first
    return total


def _call(stack: Stack, method: str, params: list[str]) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}  # fragile: viewer-json-rpc
    return httpx.post(f"{stack.url('telemetry')}/rpc", json=request, timeout=10).json().get("result")


def _span(data: dict[str, Any]) -> Span:
    resource = _by_key(data["resource"]["attributes"])
    return Span(
        data["spanID"],
        data["parentSpanID"],
        data["name"],
        str(resource.get("service.name", "?")),
        int(data["startTime"]),
        int(data["endTime"]),
        data["statusCode"] == "Error",
        _by_key(data["attributes"]),
        tuple(event["name"] for event in data["events"]),
    )


def _by_key(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {attribute["key"]: attribute["value"] for attribute in attributes}


def _newest(points: list[dict[str, Any]]) -> float:
    point = max(points, key=lambda point: int(point["timestamp"]))
    return float(point["intValue"] if point["valueType"] == "Int" else point["doubleValue"])
