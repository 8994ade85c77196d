"""The waterfall of a trace: children under parents, bars in proportion, failures marked."""

from __future__ import annotations

from typing import Any

from stack.commands.trace import waterfall
from stack.telemetry_viewer import Span


def _span(name: str, parent: str | None, start: int, end: int, **more: Any) -> Span:
    rest = {"failed": False, "attributes": {}, "events": ()} | more
    return Span(name, parent, name, "gateway", start * 1_000_000, end * 1_000_000, **rest)


def test_children_stand_under_their_parent_in_the_order_of_time() -> None:
    found = [_span("late", "root", 5, 9), _span("root", None, 0, 10), _span("early", "root", 1, 3)]
    names = [line.split()[1] for line in list(waterfall(found))[1:]]
    assert names == ["root", "early", "late"]


def test_a_span_whose_parent_never_arrived_is_shown_at_the_top() -> None:
    lines = list(waterfall([_span("orphan", "lost", 0, 1)]))
    assert "orphan" in lines[1]


def test_the_bar_of_a_span_covers_its_share_of_the_time() -> None:
    bars = [
        line.split("|")[1] for line in list(waterfall([_span("root", None, 0, 40), _span("half", "root", 20, 40)]))[1:]
    ]
    assert bars == ["█" * 40, " " * 20 + "█" * 20]


def test_a_failed_span_is_marked_and_its_events_are_named() -> None:
    line = list(waterfall([_span("call", None, 0, 1, failed=True, events=("breaker open",))]))[1]
    assert " ! " in line
    assert line.endswith("[breaker open]")
