"""`trace TRACE_ID`: one trace as a waterfall in the terminal, read from the telemetry UI's own API."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from stack.config import Stack
from stack.console import StackError, say

BAR = 40
PATIENCE = 10.0


@dataclass(frozen=True)
class Span:
    """One row of the waterfall; times in nanoseconds since the epoch."""

    id: str
    parent: str | None
    name: str
    service: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]


def trace(stack: Stack, arguments: Sequence[str]) -> None:
    """Prints the trace; waits some seconds for one that is still on its way."""
    if len(arguments) != 1 or not re.fullmatch(r"[0-9a-f]{32}", arguments[0]):
        raise StackError(
            "no trace id",
            f"got {' '.join(arguments) or 'nothing'!r}",
            "./justw trace <32 hex digits, from traceresponse>",
        )
    until = time.monotonic() + PATIENCE
    found = spans(stack, arguments[0])
    while not found and time.monotonic() < until:
        time.sleep(0.5)
        found = spans(stack, arguments[0])
    if not found:
        raise StackError(
            f"trace {arguments[0]} is not there",
            "it never arrived or was pruned",
            f"look at {stack.url('telemetry')}",
        )
    for line in waterfall(found):
        say(line)


def spans(stack: Stack, trace_id: str) -> list[Span]:
    """Every span of a trace that has arrived; an empty list for an unknown one."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "searchSpans", "params": [trace_id]}
    try:
        answer = httpx.post(f"{stack.url('telemetry')}/rpc", json=call, timeout=10).json()
    except httpx.HTTPError as error:
        raise StackError("the telemetry UI does not answer", str(error), "./justw status") from error
    rows = (answer.get("result") or {}).get("spans") or []
    return [_span(row["spanData"]) for row in rows]


def _span(data: dict[str, Any]) -> Span:
    resource = _flat(data["resource"]["attributes"])
    return Span(
        data["spanID"],
        data["parentSpanID"],
        data["name"],
        str(resource.get("service.name", "?")),
        int(data["startTime"]),
        int(data["endTime"]),
        data["statusCode"] == "Error",
        _flat(data["attributes"]),
        tuple(event["name"] for event in data["events"]),
    )


def _flat(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {attribute["key"]: attribute["value"] for attribute in attributes}


def waterfall(found: list[Span]) -> Iterator[str]:
    """The lines of a trace, children under their parents, bars in proportion to time."""
    first, last = min(span.start for span in found), max(span.end for span in found)
    total = max(last - first, 1)
    yield f"{len(found)} spans, {len({span.service for span in found})} services, {total / 1e6:.1f} ms"
    for depth, span in _in_order(found):
        left = (span.start - first) * BAR // total
        width = max((span.end - span.start) * BAR // total, 1)
        bar = (" " * min(left, BAR - 1) + "█" * width)[:BAR].ljust(BAR)
        label = f"{'  ' * depth}{span.name}"[:52]
        mark = " !" if span.failed else "  "
        extra = f"  [{', '.join(span.events)}]" if span.events else ""
        yield f"{span.service[:14]:<14} {label:<52}{mark}{(span.end - span.start) / 1e6:>9.1f} ms |{bar}|{extra}"


def _in_order(found: list[Span]) -> Iterator[tuple[int, Span]]:
    known = {span.id for span in found}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(found, key=lambda span: span.start):
        children.setdefault(span.parent if span.parent in known else None, []).append(span)

    def walk(parent: str | None, depth: int) -> Iterator[tuple[int, Span]]:
        for span in children.get(parent, []):
            yield depth, span
            yield from walk(span.id, depth + 1)

    return walk(None, 0)
