"""The mix of `./justw load`: its shares, what users learn from answers, and the renewal of tokens."""

from __future__ import annotations

from collections import Counter

import pytest

from stack.load.mix import SHARES, Mix, User


@pytest.fixture
def users() -> list[User]:
    made = [User(f"{number}@load.example", "a password") for number in range(5)]
    for number, user in enumerate(made):
        user.signed_in({"access_token": f"token-{number}", "expires_in": 900})
        user.orders.extend(f"order-{number}-{each}" for each in range(50))
    return made


def test_the_shares_are_percents() -> None:
    assert sum(SHARES.values()) == 100


def test_the_kinds_come_in_their_shares_and_the_same_each_time(users: list[User]) -> None:
    def kinds() -> list[str]:
        mix = Mix(users)
        return [mix.next().kind for _ in range(2000)]

    for user in users:
        user.orders = type(user.orders)(user.orders, maxlen=None)
        user.orders.extend(f"more-{number}" for number in range(1000))
    counts = Counter(kinds())
    assert counts["read order"] / 2000 == pytest.approx(SHARES["read order"] / 100, abs=0.04)
    assert counts["place order"] / 2000 == pytest.approx(SHARES["place order"] / 100, abs=0.03)
    assert set(counts) == set(SHARES)


def test_a_user_without_orders_places_one_first() -> None:
    user = User("a@load.example", "a password")
    user.signed_in({"access_token": "token", "expires_in": 900})
    mix = Mix([user])
    kinds = {mix.next().kind for _ in range(300)}
    assert "place order" in kinds
    assert not kinds & {"read order", "read events", "cancel order"}
    placed = next(call for call in iter(mix.next, None) if call.kind == "place order")
    assert placed.learn is not None
    placed.learn({"id": "the-order"})
    assert "read order" in {mix.next().kind for _ in range(20)}


def test_an_order_is_cancelled_once(users: list[User]) -> None:
    mix = Mix(users)
    cancelled = [call.path for call in (mix.next() for _ in range(2000)) if call.kind == "cancel order"]
    assert cancelled
    assert len(set(cancelled)) == len(cancelled)


def test_a_token_is_renewed_after_half_of_its_time() -> None:
    user = User("a@load.example", "a password")
    user.signed_in({"access_token": "old", "expires_in": 0})
    mix = Mix([user])
    call = mix.next()
    assert (call.kind, call.path) == ("sign in", "/v1/sessions")
    assert mix.next().kind != "sign in", "not again before it is answered"
    assert call.learn is not None
    call.learn({"access_token": "new", "expires_in": 900})
    assert user.headers == {"Authorization": "Bearer new"}


def test_no_secret_is_shown_with_a_call(users: list[User]) -> None:
    assert "token" not in repr(Mix(users).next()).replace("order", "")
