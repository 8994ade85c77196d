"""`trace TRACE_ID`: one trace as a waterfall in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stack.config import Stack
from stack.console import StackError, say
from stack.telemetry_viewer import Span, spans
from stack.waiting import wait_until

BAR = 40
ARRIVAL_SECONDS = 10.0


def trace(stack: Stack, trace_id: str) -> None:
    """Prints the trace; waits some seconds for one that has not arrived yet."""
    if not re.fullmatch(r"[0-9a-f]{32}", trace_id):
        raise StackError("no trace id", f"got {trace_id!r}", "./justw trace <32 hex digits, from traceresponse>")
    found = wait_until(
        lambda: spans(stack, trace_id),
        ARRIVAL_SECONDS,
        lambda: StackError(
            f"trace {trace_id} was not found",
            "it was not recorded (the last part of its traceresponse is even then), or the viewer has removed it",
            f"search in {stack.url('telemetry')}; to record more, raise traces_per_second in Consul key config/gateway",
        ),
        interval=0.5,
    )
    for line in waterfall(found):
        say(line)


def waterfall(found: list[Span]) -> Iterator[str]:
    """Yields the lines of a trace, children under their parents, bars in proportion to time."""
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
