"""A plan as text and as JSON: the same changes, with their sentences."""

from __future__ import annotations

from stack.cluster.planned_changes import Change
from stack.commands.plan import document, text

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
