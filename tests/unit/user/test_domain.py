"""The rules of credit, whatever is asked in whatever sequence."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from user_service import domain
from user_service.domain import Credit, Refusal, Reservation, State

USER = UUID(int=1)
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 120)))


@given(st.integers(0, 200), steps)
def test_whatever_is_asked_the_held_sum_is_exact_and_within_the_limit(
    limit: int, asked: list[tuple[bool, int, int]]
) -> None:
    kept: dict[UUID, Reservation] = {}
    for reserve, number, amount in asked:
        order_id = UUID(int=number)
        held = sum(reservation.holds for reservation in kept.values())
        wanted = Reservation(order_id, USER, amount, State.HELD)
        try:
            kept[order_id] = (
                domain.reserve(Credit("EUR", limit, held), kept.get(order_id), wanted, "EUR")
                if reserve
                else domain.release(kept.get(order_id), order_id, USER)
            )
        except Refusal:
            continue
        assert 0 <= sum(reservation.holds for reservation in kept.values()) <= limit
