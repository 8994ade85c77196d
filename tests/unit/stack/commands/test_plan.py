"""A plan as text and as JSON: the same changes, with their sentences."""

from __future__ import annotations

from collections.abc import Iterator

from stack.cluster.job_health.problem import Problem
from stack.cluster.planned_changes import Change
from stack.commands.plan import document, not_running, text

CHANGES = [
    Change("consul kv config/gateway", "a\nb\n", "a\nc\n", lambda: None, ("config/gateway: b is now c",)),
    Change("consul role new", "", "{}", lambda: None),
    Change("consul role old", "{}", "", lambda: None),
]


def test_the_text_shows_a_diff_and_its_sentences() -> None:
    lines = "\n".join(text(CHANGES, ["config/user-service"], ["no compiler"])).splitlines()
    assert lines[0] == "note: no compiler"
    assert lines[1] == "~ consul kv config/gateway"
    assert {"    -b", "    +c", "    config/gateway: b is now c", "+ consul role new", "- consul role old"} < set(lines)
    assert lines[-2:] == ["= consul kv config/user-service was changed by hand and is kept", "3 changes"]


def test_the_json_holds_every_change_with_its_action() -> None:
    found = document(CHANGES, ["config/user-service"], ["no compiler"])
    assert (found["kept"], found["notes"]) == (["config/user-service"], ["no compiler"])
    first, *others = found["changes"]
    assert first == {
        "where": "consul kv config/gateway",
        "action": "change",
        "before": "a\nb\n",
        "after": "a\nc\n",
        "notes": ["config/gateway: b is now c"],
    }
    assert [row["action"] for row in others] == ["add", "remove"]


def test_a_plan_without_changes_is_one_line() -> None:
    assert list(text([], [], [])) == ["no change"]


def test_what_does_not_run_is_said_with_its_remedy_also_without_a_change() -> None:
    problem = Problem("no node can run group api", "nomad node eligibility -enable 1", lasting=True)
    assert list(text([], [], [], [problem])) == [
        "! does not run: no node can run group api",
        "    next: nomad node eligibility -enable 1",
        "no change, but not everything runs",
    ]
    row = {"text": "no node can run group api", "remedy": "nomad node eligibility -enable 1", "lasting": True}
    assert document([], [], [], [problem])["problems"] == [row]


def test_a_job_that_becomes_healthy_meanwhile_is_not_listed() -> None:
    lasting = Problem("a", "b")
    answers: dict[str, Iterator[list[Problem]]] = {
        "gateway": iter([[lasting], []]),
        "edge": iter([[]]),
        "postgres": iter([[lasting]] * 9),
    }
    assert not_running(lambda name: next(answers[name]), ["gateway", "edge"], seconds=5) == []
    assert not_running(lambda name: next(answers[name]), ["postgres"], seconds=1.5) == [lasting]
