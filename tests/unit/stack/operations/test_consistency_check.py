"""What credit an order may hold, by its status; what is only on its way is no finding."""

from __future__ import annotations

from typing import Any

import pytest

from stack.operations.consistency_check import Books, findings, read

HELD = {"user_id": "ada", "amount": 5, "state": "held"}
RELEASED = HELD | {"state": "released"}


def books(status: str, reservation: dict[str, Any] | None, *owes: str) -> Books:
    made = Books()
    read(made, {"user": {"id": "ada"}})
    read(made, {"order": {"id": "o", "user_id": "ada", "status": status, "total": 5, "owes": list(owes)}})
    if reservation:
        read(made, {"reservation": {"order_id": "o", **reservation}})
    return made


@pytest.mark.parametrize(
    ("status", "reservation", "owes"),
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
def test_an_order_may_hold_what_its_status_says(
    status: str, reservation: dict[str, Any] | None, owes: list[str]
) -> None:
    assert list(findings(books(status, reservation, *owes))) == []


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
def test_everything_else_is_a_finding(status: str, reservation: dict[str, Any] | None) -> None:
    (only,) = findings(books(status, reservation))
    assert (only.order, only.rule) == ("o", "credit")
    assert only.next


def test_the_same_finding_in_two_looks_is_one_whatever_it_says() -> None:
    (first,), (second,) = findings(books("cancelled", HELD)), findings(books("cancelled", HELD | {"amount": 4}))
    assert {first} & {second}


def test_an_order_of_a_user_who_never_was_needs_no_release() -> None:
    made = books("rejected", None)
    made.users.clear()
    assert list(findings(made)) == []


def test_credit_without_an_order_is_a_finding_unless_it_was_given_back() -> None:
    made = Books()
    read(made, {"reservation": {"order_id": "x", **RELEASED}})
    assert list(findings(made)) == []
    read(made, {"reservation": {"order_id": "y", **HELD}})
    assert [finding.order for finding in findings(made)] == ["y"]
