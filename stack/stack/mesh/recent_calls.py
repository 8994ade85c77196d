"""Who called whom in the last minutes: the metrics of the services in the mesh, from the telemetry viewer.

A process sends its metrics every thirty seconds, so the newest calls are missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from stack import telemetry_viewer
from stack.config import Stack
from stack.console import table

Row = dict[str, Any]
MINUTES = 5
_ALLOWED, _DENIED, _FAILED = "mesh.calls", "mesh.calls.denied", "mesh.handshakes.failed"


def read(stack: Stack) -> Row | None:
    """Returns calls by service, caller and method, and refused handshakes by service and reason; None without them."""
    increased = telemetry_viewer.increases(stack, (_ALLOWED, _DENIED, _FAILED), 60 * MINUTES)
    if increased is None:
        return None
    calls: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: {"allowed": 0, "denied": 0})
    for kind, name in (("allowed", _ALLOWED), ("denied", _DENIED)):
        for each in increased[name]:
            key = each.service, each.attributes["mesh.caller"], _method(each.attributes)
            calls[key][kind] += each.amount
    return {
        "minutes": MINUTES,
        "calls": [
            {"service": service, "caller": caller, "method": method, **counts}
            for (service, caller, method), counts in sorted(calls.items())
        ],
        "failed_handshakes": [
            {"service": each.service, "reason": each.attributes["error.type"], "count": each.amount}
            for each in increased[_FAILED]
        ],
    }


def _method(attributes: Mapping[str, str]) -> str:
    """Returns the method of gRPC, or "GET requests" and so on: nothing counts by paths, which a caller chooses."""
    return attributes.get("rpc.method") or f"{attributes['http.request.method']} requests"


def lines(found: Row | None) -> Iterator[str]:
    """Yields what `read` returned as text."""
    if found is None:
        yield "! who called whom is not known: the telemetry viewer does not answer"
        return
    yield from table(
        (f"called in the last {found['minutes']} minutes", "caller", "calls", "denied"),
        [(row["method"].removeprefix("/"), row["caller"], row["allowed"], row["denied"]) for row in found["calls"]],
    )
    if found["failed_handshakes"]:
        yield ""
        rows = [(row["service"], row["reason"], row["count"]) for row in found["failed_handshakes"]]
        yield from table(("TLS handshakes that failed", "reason", "count"), rows)
