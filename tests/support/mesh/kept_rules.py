"""How often a caller of this process has kept its last traffic rules."""

from __future__ import annotations

import time
from typing import Any

from chassis.telemetry.metrics import collect


def kept(service: str, reason: str) -> int:
    """How often the last rules of a service stayed in use for a reason."""
    metric = next((metric for metric in collect(time.time_ns()) if metric.name == "traffic_rules.kept"), None)
    points: list[Any] = list(metric.data.data_points) if metric else []
    return sum(p.value for p in points if p.attributes == {"rpc.service": service, "reason": reason})
