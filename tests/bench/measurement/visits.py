"""One visit of a way: a closed loop of requests, with the CPU time of the measured processes before and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bench.measurement.cpu import cpu_seconds
from bench.measurement.rounds import Visit
from bench.traffic.http_client import Tls
from bench.traffic.load import Load, closed_loop


def http_visit(
    port: int,
    parts: Mapping[str, Iterable[int]],
    requests: list[bytes],
    connections: int,
    seconds: float,
    *,
    tls: Tls | None = None,
) -> Visit:
    """Measures the parts (process ids by name) under a closed loop; raises SystemExit if a request fails."""
    return measured(parts, lambda: closed_loop(port, requests, connections, seconds, tls).must_be_good())


def measured(parts: Mapping[str, Iterable[int]], run: Callable[[], Load]) -> Visit:
    """Runs a load, and returns its good requests with the CPU time that each part took meanwhile."""
    pids = {name: list(part) for name, part in parts.items()}
    before = {name: cpu_seconds(part) for name, part in pids.items()}
    load = run()
    used = {name: cpu_seconds(part) - before[name] for name, part in pids.items()}
    return Visit(load.good, load.seconds, used)
