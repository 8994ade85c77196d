"""Customers register, sign in, place, list and cancel orders through the gateway of a running stack."""

from __future__ import annotations

import httpx
import pytest
from support.stack_under_test import eventually
from support.traffic.api_user import LINES, ApiUser, register


def test_a_registered_user_has_the_initial_credit(user: ApiUser) -> None:
    me = user.get("/v1/users/me").json()
    assert me["email"] == user.email
    assert me["credit"]["available"] == me["credit"]["limit"] == 100_000


def test_an_email_can_be_registered_once_whatever_its_case(http: httpx.Client, user: ApiUser) -> None:
    body = {"email": user.email.upper(), "name": "Another User", "password": "another long password"}
    assert http.post("/v1/users", json=body).status_code == httpx.codes.CONFLICT


def test_a_wrong_password_and_an_unknown_email_get_the_same_answer(http: httpx.Client, user: ApiUser) -> None:
    wrong = http.post("/v1/sessions", json={"email": user.email, "password": "not the password"})
    unknown = http.post("/v1/sessions", json={"email": "nobody@people.example", "password": "not the password"})
    assert wrong.status_code == unknown.status_code == httpx.codes.UNAUTHORIZED
    assert wrong.json()["detail"] == unknown.json()["detail"]


def test_a_placed_order_is_confirmed_and_holds_its_total(user: ApiUser) -> None:
    placed = user.place()
    assert placed.status_code == httpx.codes.CREATED
    assert placed.headers["etag"] == '"1"'
    order = placed.json()
    assert placed.headers["location"] == f"/v1/orders/{order['id']}"
    assert (order["status"], order["total"], order["version"]) == ("pending", 700, 1)
    assert user.settled(order["id"])["status"] == "confirmed"
    assert user.credit() == 100_000 - 700


def test_an_order_beyond_the_credit_is_rejected_and_holds_nothing(user: ApiUser) -> None:
    order = user.place([{"sku": "gold-bar", "quantity": 1, "unit_price": 100_001}]).json()
    assert user.settled(order["id"])["status"] == "rejected"
    assert user.credit() == 100_000


def test_a_cancelled_order_gives_its_credit_back(user: ApiUser) -> None:
    order = user.settled(user.place().json()["id"])
    cancelled = user.cancel(order["id"])
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    eventually("the credit is back", lambda: user.credit() == 100_000)
    assert user.cancel(order["id"]).status_code == httpx.codes.CONFLICT


def test_a_cancel_that_names_an_old_version_is_refused(user: ApiUser) -> None:
    order = user.settled(user.place().json()["id"])
    assert user.cancel(order["id"], **{"If-Match": '"1"'}).status_code == httpx.codes.PRECONDITION_FAILED
    assert user.cancel(order["id"], **{"If-Match": f'"{order["version"]}"'}).status_code == httpx.codes.OK


def test_the_same_key_places_one_order(user: ApiUser) -> None:
    first, again = user.place(key="one-and-only"), user.place(key="one-and-only")
    assert (first.status_code, first.json(), first.headers["location"]) == (
        again.status_code,
        again.json(),
        again.headers["location"],
    )
    other = user.place([{"sku": "tea-black", "quantity": 1, "unit_price": 1}], key="one-and-only")
    assert other.status_code == httpx.codes.UNPROCESSABLE_ENTITY


def test_an_order_without_a_key_is_refused(user: ApiUser) -> None:
    reply = user.http.post("/v1/orders", json={"currency": "EUR", "lines": LINES}, headers=user.headers)
    assert reply.status_code == httpx.codes.BAD_REQUEST


def test_a_list_shows_the_newest_first_page_by_page(user: ApiUser) -> None:
    placed = [user.place().json()["id"] for _ in range(3)]
    for order_id in placed:
        user.settled(order_id)
    eventually("all three are listed", lambda: len(user.get("/v1/orders?status=confirmed").json()["items"]) == 3)
    first = user.get("/v1/orders?limit=2").json()
    rest = user.get(f"/v1/orders?limit=2&cursor={first['next_cursor']}").json()
    assert [order["id"] for order in first["items"] + rest["items"]] == placed[::-1]
    assert rest["next_cursor"] is None


def test_an_order_shows_its_history(user: ApiUser) -> None:
    order = user.settled(user.place().json()["id"])
    events = user.get(f"/v1/orders/{order['id']}/events").json()["items"]
    assert [(event["version"], event["type"]) for event in events] == [
        (1, "OrderPlaced"),
        (2, "OrderConfirmed"),
    ]


@pytest.mark.parametrize("path", ["", "/events"])
def test_the_order_of_somebody_else_does_not_exist(http: httpx.Client, user: ApiUser, path: str) -> None:
    order = user.place().json()
    assert register(http).get(f"/v1/orders/{order['id']}{path}").status_code == httpx.codes.NOT_FOUND
