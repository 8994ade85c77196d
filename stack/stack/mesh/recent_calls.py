"""Who called whom in the last minutes: the metrics of the services in the mesh, from the telemetry viewer.

A process sends its metrics every thirty seconds, so the newest calls are missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stack import telemetry_viewer
from stack.config import Stack

Row = dict[str, Any]
MINUTES = 5


def read(stack: Stack) -> Row | None:
    """Returns calls by service, caller and method, and refused handshakes by service and reason; None without them."""
    allowed, denied, failed = (
        telemetry_viewer.increases(stack, name, 60 * MINUTES)
        for name in ("mesh.calls", "mesh.calls.denied", "mesh.handshakes.failed")
    )
    if allowed is None or denied is None or failed is None:
        return None
    calls: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: {"allowed": 0, "denied": 0})
    for kind, found in (("allowed", allowed), ("denied", denied)):
        for each in found:
            key = each.service, each.attributes["mesh.caller"], _method(each.attributes)
            calls[key][kind] += each.amount
    return {
        "minutes": MINUTES,
        "calls": [
            {"service": service, "caller": caller, "method": method, **counts}
            for (service, caller, method), counts in sorted(calls.items())
        ],
        "failed_handshakes": [
            {"service": each.service, "reason": each.attributes["error.type"], "count": each.amount} for each in failed
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
    yield from _table(
        (f"called in the last {found['minutes']} minutes", "caller", "calls", "denied"),
        [(row["method"].removeprefix("/"), row["caller"], row["allowed"], row["denied"]) for row in found["calls"]],
    )
    if found["failed_handshakes"]:
        yield ""
        rows = [(row["service"], row["reason"], row["count"]) for row in found["failed_handshakes"]]
        yield from _table(("TLS handshakes that failed", "reason", "count"), rows)


def _table(heading: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    texts = [[str(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
