"""The last values of a gauge, read from the telemetry UI's own API."""

from __future__ import annotations

import time
from typing import Any

import httpx

from stack.config import Stack

# A process sends its metrics every thirty seconds; what is older was said by one that is gone.
_FRESH_SECONDS = 45


def last_values(stack: Stack, name: str, service: str) -> dict[str, float]:
    """The newest value of each series by its attributes ("projection=orders"); empty where nobody told lately."""
    now = time.time_ns()
    span = [str(now - _FRESH_SECONDS * 10**9), str(now + 10**9)]
    found = [
        metric["id"]
        for metric in _ask(stack, "searchMetricSummaries", span) or []
        if (metric["name"], metric["serviceName"]) == (name, service)
    ]
    series = [
        series for one in found for series in (_ask(stack, "getMetric", [one, *span]) or {}).get("timeseries", [])
    ]
    return {row["attributesKey"]: _newest(row["datapoints"]) for row in series if row["datapoints"]}


def _newest(points: list[dict[str, Any]]) -> float:
    point = max(points, key=lambda point: int(point["timestamp"]))
    return float(point["intValue"] if point["valueType"] == "Int" else point["doubleValue"])


def _ask(stack: Stack, method: str, params: list[str]) -> Any:
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    try:
        return httpx.post(f"{stack.url('telemetry')}/rpc", json=call, timeout=5).json().get("result")
    except (httpx.HTTPError, ValueError):
        return None
