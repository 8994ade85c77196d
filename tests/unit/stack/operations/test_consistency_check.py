"""The credit an order may hold, by its status; an order in progress is no finding."""

from __future__ import annotations

from typing import Any

import pytest

from stack.operations.consistency_check import findings
from stack.operations.service_reports import Reports

HELD = {"user_id": "ada", "amount": 5, "state": "held"}
RELEASED = HELD | {"state": "released"}


def reports(status: str, reservation: dict[str, Any] | None, *pending: str, user: str = "ada") -> Reports:
    order = {"id": "o", "user_id": "ada", "status": status, "currency": "EUR", "total": 5, "pending": list(pending)}
    made = Reports()
    made.add([{"user": {"id": user}}, {"order": order}])
    if reservation:
        made.add([{"reservation": {"order_id": "o", **reservation}}])
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
    assert list(findings(reports(status, reservation, *pending))) == []


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
    (only,) = findings(reports(status, reservation))
    assert (only.order, only.rule) == ("o", "credit")
    assert only.next


def test_two_snapshots_share_a_finding_even_if_its_values_differ() -> None:
    (first,), (second,) = findings(reports("cancelled", HELD)), findings(reports("cancelled", HELD | {"amount": 4}))
    assert {first} & {second}


def test_an_order_of_an_unknown_user_needs_no_release() -> None:
    assert list(findings(reports("rejected", None, user="bob"))) == []


def test_credit_without_an_order_is_a_finding_unless_it_was_released() -> None:
    made = Reports()
    made.add([{"reservation": {"order_id": "x", **RELEASED}}])
    assert list(findings(made)) == []
    made.add([{"reservation": {"order_id": "y", **HELD}}])
    assert [finding.order for finding in findings(made)] == ["y"]


def test_the_counts_are_those_of_the_services_and_of_their_lines() -> None:
    made = reports("confirmed", HELD, "release")
    made.add([{"counts": {"events": 2, "keys": 1}}, {"counts": {"users": 1}}])
    assert made.counts() == {"events": 2, "keys": 1, "orders": 1, "in_progress": 1, "reservations": 1, "users": 1}
