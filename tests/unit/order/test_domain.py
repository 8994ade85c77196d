"""The decisions of the domain and the orders that they result in."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.events.record import RecordedEvent
from order_service import domain
from order_service.domain import DomainError, Invalid, Line, Order, OrderClosed, Status, VersionMismatch
from order_service.storage import event_codec

USER, ORDER, COMMAND = UUID(int=1), UUID(int=2), UUID(int=3)
GOOD = Line("tea-1", 2, 150)


@pytest.mark.parametrize(
    ("field", "currency", "lines"),
    [
        ("currency", "eur", [GOOD]),
        ("currency", "EURO", [GOOD]),
        ("currency", "", [GOOD]),
        ("currency", "ABC", [GOOD]),
        ("currency", "DEM", [GOOD]),
        ("currency", "XAU", [GOOD]),
        ("currency", "XXX", [GOOD]),
        ("lines", "EUR", []),
        ("lines", "EUR", [GOOD] * 101),
        ("lines[0].sku", "EUR", [Line("", 1, 1)]),
        ("lines[0].sku", "EUR", [Line("-tea", 1, 1)]),
        ("lines[0].sku", "EUR", [Line("t\x00", 1, 1)]),
        ("lines[0].sku", "EUR", [Line("a" * 65, 1, 1)]),
        ("lines[1].quantity", "EUR", [GOOD, Line("tea", 0, 1)]),
        ("lines[1].quantity", "EUR", [GOOD, Line("tea", 10_001, 1)]),
        ("lines[0].unit_price", "EUR", [Line("tea", 1, -1)]),
        ("lines[0].unit_price", "EUR", [Line("tea", 1, 10**9 + 1)]),
    ],
)
def test_an_order_that_breaks_a_rule_names_the_field(field: str, currency: str, lines: list[Line]) -> None:
    with pytest.raises(Invalid) as caught:
        domain.place(USER, currency, lines)
    assert list(caught.value.fields) == [field]


@pytest.mark.parametrize(("currency", "credit"), [("USD", "EUR"), ("EUR", "JPY")])
def test_an_order_in_another_currency_than_the_credit_names_the_field(currency: str, credit: str) -> None:
    with pytest.raises(Invalid, match="currency") as caught:
        domain.place(USER, currency, [GOOD], credit)
    assert caught.value.fields == {"currency": f"must be {credit}, the currency of your credit"}


def test_every_invalid_field_is_named() -> None:
    wrong = [Line("", 0, -1), GOOD, Line("tea", 10_001, 10**9 + 1)]
    with pytest.raises(Invalid) as caught:
        domain.place(USER, "eur", wrong)
    first, last = ("sku", "quantity", "unit_price"), ("quantity", "unit_price")
    assert set(caught.value.fields) == {
        "currency",
        *(f"lines[0].{field}" for field in first),
        *(f"lines[2].{field}" for field in last),
    }


@pytest.mark.parametrize("currency", ["EUR", "USD", "JPY", "KWD"])
def test_an_order_in_the_currency_of_the_credit_is_accepted(currency: str) -> None:
    assert domain.place(USER, currency, [GOOD], currency) == domain.place(USER, currency, [GOOD])


@pytest.mark.parametrize(
    "lines",
    [
        [Line("t", 1, 0)],
        [Line("a" * 64, 10_000, 0)],
        [Line("tea", 1, 10**9)],
        [Line("0.x_Y-z", 1, 1)],
        [GOOD] * 100,
    ],
)
def test_values_at_their_limits_are_accepted(lines: list[Line]) -> None:
    placed = domain.place(USER, "EUR", lines)
    assert placed.total == sum(line.quantity * line.unit_price for line in lines)


def test_the_largest_order_fits_64_bits() -> None:
    placed = domain.place(USER, "EUR", [Line("gold", 10_000, 10**9)] * 100)
    assert placed.total == 10**15 <= domain.LARGEST_TOTAL == 2**63 - 1


def test_a_total_that_does_not_fit_names_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "LARGEST_TOTAL", 300)
    assert domain.place(USER, "EUR", [GOOD]).total == 300
    with pytest.raises(Invalid) as caught:
        domain.place(USER, "EUR", [GOOD, Line("tea-2", 1, 1)])
    assert list(caught.value.fields) == ["lines"]


def test_a_version_mismatch_takes_precedence_over_a_final_status() -> None:
    order = fold(placed(), domain.OrderRejected("CREDIT_EXCEEDED"))
    with pytest.raises(VersionMismatch):
        domain.cancel(order, [1])
    with pytest.raises(OrderClosed):
        domain.cancel(order, [1, 2])


@pytest.mark.parametrize("end", [domain.OrderRejected("CREDIT_EXCEEDED"), domain.OrderCancelled()])
def test_a_final_order_is_not_cancelled(end: domain.Event) -> None:
    with pytest.raises(OrderClosed):
        domain.cancel(fold(placed(), end), [])


@pytest.mark.parametrize("end", [domain.OrderConfirmed(), domain.OrderRejected("X"), domain.OrderCancelled()])
def test_an_order_that_is_not_pending_is_neither_confirmed_nor_rejected(end: domain.Event) -> None:
    order = fold(placed(), end)
    assert domain.confirm(order) == domain.reject(order, "X") == []


def test_events_without_the_first_do_not_fold_to_an_order() -> None:
    with pytest.raises(ValueError, match="first event of an order has to be OrderPlaced"):
        fold(domain.OrderConfirmed())


Decision = Callable[[Order], list[domain.Event]]
decisions: st.SearchStrategy[list[Decision]] = st.lists(
    st.sampled_from([domain.confirm, lambda order: domain.reject(order, "X"), lambda order: domain.cancel(order, [])])
)
DOCUMENTED_TRANSITIONS = {
    (Status.PENDING, Status.CONFIRMED),
    (Status.PENDING, Status.REJECTED),
    (Status.PENDING, Status.CANCELLED),
    (Status.CONFIRMED, Status.CANCELLED),
}


@given(decisions)
def test_any_decisions_make_only_documented_transitions_and_versions_have_no_gap(
    decided: list[Decision],
) -> None:
    past = encode(0, placed())
    for decide in decided:
        before = event_codec.fold(past)
        assert before is not None
        try:
            past += encode(before.version, *decide(before))
        except DomainError:
            continue
        after = event_codec.fold(past)
        assert after is not None
        assert after.version == len(past) == past[-1].version
        assert after == before or (before.status, after.status) in DOCUMENTED_TRANSITIONS


def test_each_event_results_in_one_status_wherever_it_may_occur() -> None:
    moves = {(event, status) for moves in domain.TRANSITIONS.values() for event, status in moves.items()}
    assert moves == set(domain.STATUS_AFTER.items())


lines = st.builds(
    Line,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.integers(1, 10_000),
    st.integers(0, 10**9),
)


@given(st.lists(lines, min_size=1, max_size=100))
def test_an_event_is_decoded_from_json_as_it_was_encoded(some: list[Line]) -> None:
    event = domain.place(USER, "EUR", some)
    recorded = encode(0, event)[0]
    again = RecordedEvent(recorded.stream, 1, recorded.type, json.loads(json.dumps(recorded.data)), dict(recorded.meta))
    assert event_codec.decode(again) == event
    order = event_codec.fold([again])
    assert order is not None
    assert (order.status, order.version) == (Status.PENDING, 1)
    assert order.total == sum(line.quantity * line.unit_price for line in some)


def placed() -> domain.OrderPlaced:
    return domain.place(USER, "EUR", [GOOD])


def encode(after: int, *events: domain.Event) -> list[RecordedEvent]:
    return event_codec.encode(ORDER, after, events, event_codec.Cause(str(USER), COMMAND))


def fold(*events: domain.Event) -> Order:
    order = event_codec.fold(encode(0, *events))
    assert order is not None
    return order
