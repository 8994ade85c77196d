"""The credit an order may hold, by its status; an order in progress is no finding."""

from __future__ import annotations

from typing import Any

import pytest

from stack.operations.consistency_check import Snapshot, add, findings

HELD = {"user_id": "ada", "amount": 5, "state": "held"}
RELEASED = HELD | {"state": "released"}


def snapshot(status: str, reservation: dict[str, Any] | None, *pending: str) -> Snapshot:
    made = Snapshot()
    add(made, {"user": {"id": "ada"}})
    add(made, {"order": {"id": "o", "user_id": "ada", "status": status, "total": 5, "pending": list(pending)}})
    if reservation:
        add(made, {"reservation": {"order_id": "o", **reservation}})
    return made


@pytest.mark.parametrize(
    ("status", "reservation", "pending"),
    [
        ("pending", None, ["reserve"]),
        ("pending", HELD, ["reserve"]),
        ("confirmed", HELD, []),
        ("cancelled", RELEASED, []),
        ("cancelled", HELD, ["release"]),
        ("rejected", None, ["release"]),
        ("rejected", RELEASED, []),
    ],
)
def test_credit_that_matches_the_status_is_no_finding(
    status: str, reservation: dict[str, Any] | None, pending: list[str]
) -> None:
    assert list(findings(snapshot(status, reservation, *pending))) == []


@pytest.mark.parametrize(
    ("status", "reservation"),
    [
        ("pending", RELEASED),
        ("pending", HELD | {"amount": 4}),
        ("confirmed", None),
        ("confirmed", RELEASED),
        ("confirmed", HELD | {"amount": 4}),
        ("confirmed", HELD | {"user_id": "bob"}),
        ("cancelled", HELD),
        ("cancelled", None),
        ("rejected", HELD),
    ],
)
def test_credit_that_does_not_match_the_status_is_a_finding(status: str, reservation: dict[str, Any] | None) -> None:
    (only,) = findings(snapshot(status, reservation))
    assert (only.order, only.rule) == ("o", "credit")
    assert only.next


def test_two_snapshots_share_a_finding_even_if_its_values_differ() -> None:
    (first,), (second,) = findings(snapshot("cancelled", HELD)), findings(snapshot("cancelled", HELD | {"amount": 4}))
    assert {first} & {second}


def test_an_order_of_an_unknown_user_needs_no_release() -> None:
    made = snapshot("rejected", None)
    made.users.clear()
    assert list(findings(made)) == []


def test_credit_without_an_order_is_a_finding_unless_it_was_released() -> None:
    made = Snapshot()
    add(made, {"reservation": {"order_id": "x", **RELEASED}})
    assert list(findings(made)) == []
    add(made, {"reservation": {"order_id": "y", **HELD}})
    assert [finding.order for finding in findings(made)] == ["y"]
