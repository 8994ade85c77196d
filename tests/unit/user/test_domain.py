"""The rules of credit hold for any sequence of requests."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from user_service import domain
from user_service.domain import Credit, DomainError, Reservation, State

USER = UUID(int=1)
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 120)))


@given(st.integers(0, 200), steps)
def test_the_held_sum_is_exact_and_within_the_limit_after_any_sequence(
    limit: int, requests: list[tuple[bool, int, int]]
) -> None:
    stored: dict[UUID, Reservation] = {}
    for reserve, number, amount in requests:
        order_id = UUID(int=number)
        held = sum(reservation.held_amount for reservation in stored.values())
        requested = Reservation(order_id, USER, amount, State.HELD)
        try:
            stored[order_id] = (
                domain.reserve(Credit("EUR", limit, held), stored.get(order_id), requested, "EUR")
                if reserve
                else domain.release(stored.get(order_id), order_id, USER)
            )
        except DomainError:
            continue
        assert 0 <= sum(reservation.held_amount for reservation in stored.values()) <= limit
