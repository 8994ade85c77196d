"""The REST interface of orders."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from user_service.access_token_issuer import AccessTokenIssuer

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway


@pytest.mark.parametrize("key", [None, "", "two words", "k" * 201, "tab\there", "ünï"])
async def test_an_order_without_a_valid_idempotency_key_is_rejected(gateway: RunningGateway, key: str | None) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (await gateway.token()).items()]
    headers += [] if key is None else [(b"idempotency-key", key.encode())]
    body = {"currency": "EUR", "lines": [{"sku": "tea", "quantity": 1, "unit_price": 1}]}
    response = await gateway.http.post("/v1/orders", json=body, headers=headers)
    assert (response.status_code, response.json()["type"]) == (400, "/problems/idempotency-key-missing")


async def test_an_idempotency_key_with_another_body_is_rejected(gateway: RunningGateway) -> None:
    token = await gateway.token()
    await gateway.place(token)
    response = await gateway.place(token, currency="SEK")
    assert (response.status_code, response.json()["type"]) == (422, "/problems/idempotency-key-reused")


async def test_a_placed_order_is_pending_and_has_a_location(gateway: RunningGateway) -> None:
    response = await gateway.place(await gateway.token())
    order = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/orders/{order['id']}"
    assert response.headers["etag"] == '"1"'
    assert (order["status"], order["total"], order["version"]) == ("pending", 300, 1)
    assert order["placed_at"].endswith("Z")
    assert datetime.fromisoformat(order["placed_at"]).tzinfo is not None


async def test_a_repeated_request_gets_the_same_response_after_the_order_has_changed(
    gateway: RunningGateway,
) -> None:
    token = await gateway.token()
    first = await gateway.place(token)
    await gateway.orders.confirm(first.json()["id"])
    again = await gateway.place(token)
    for response in (first, again):
        assert response.status_code == 201
    assert first.content == again.content
    assert [again.headers[name] for name in ("location", "etag")] == [first.headers["location"], '"1"']


async def test_concurrent_duplicates_get_the_same_response(gateway: RunningGateway) -> None:
    token = await gateway.token()
    responses = await asyncio.gather(*(gateway.place(token) for _ in range(8)))
    assert len({response.content for response in responses}) == 1


async def test_a_read_returns_the_last_write_with_its_etag(gateway: RunningGateway) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.confirm(order["id"])
    response = await gateway.http.get(f"/v1/orders/{order['id']}", headers=token)
    assert (response.status_code, response.headers["etag"]) == (200, '"2"')
    assert response.json() == order | {"status": "confirmed", "version": 2}


@pytest.mark.parametrize("suffix", ["", "/events", "/cancel"])
async def test_an_order_of_another_user_is_unknown(gateway: RunningGateway, suffix: str) -> None:
    order = (await gateway.place(await gateway.token())).json()
    eve = await gateway.token("eve@example.com")
    verb = "POST" if suffix == "/cancel" else "GET"
    for name in (order["id"], str(uuid4()), "7", "../../x", "0" * 36, "%00"):
        response = await gateway.http.request(verb, f"/v1/orders/{name}{suffix}", headers=eve)
        assert (response.status_code, response.json()["status"]) == (404, 404)


# Where the order has version 2.
OTHERS = ['"1"', 'W/"2"', '"x"', "2", '""', '"1", "3"', '"99999999999999999999"', '"02"', '"+2"', '"2 "', 'x"2"y',
          '*, "2"', '"2", *', '"2" "1"', '"2";', '"2"x', 'w/"2"', 'W/ "2"', '"2', "'2'", ",", '"1, "2"']  # fmt: skip


@pytest.mark.parametrize("tag", OTHERS)
async def test_a_cancellation_of_another_version_is_rejected(gateway: RunningGateway, tag: str) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.confirm(order["id"])
    response = await gateway.http.post(f"/v1/orders/{order['id']}/cancel", headers=token | {"if-match": tag})
    assert (response.status_code, response.json()["type"]) == (412, "/problems/version-mismatch")


@pytest.mark.parametrize("tag", [None, "*", '"2"', '"1", "2"', '"1","2"', ', W/"1" ,, "a,b"\t,"2",'])
async def test_the_current_version_is_cancelled(gateway: RunningGateway, tag: str | None) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.confirm(order["id"])
    headers = token | ({} if tag is None else {"if-match": tag})
    response = await gateway.http.post(f"/v1/orders/{order['id']}/cancel", headers=headers)
    assert (response.status_code, response.headers["etag"]) == (200, '"3"')
    assert response.json()["status"] == "cancelled"


async def test_a_final_order_cannot_be_cancelled(gateway: RunningGateway) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.reject(order["id"])
    response = await gateway.http.post(f"/v1/orders/{order['id']}/cancel", headers=token)
    assert (response.status_code, response.json()["type"]) == (409, "/problems/order-closed")


async def test_the_history_lists_the_events_of_an_order(gateway: RunningGateway) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.reject(order["id"])
    items = (await gateway.http.get(f"/v1/orders/{order['id']}/events", headers=token)).json()["items"]
    assert [(item["version"], item["type"]) for item in items] == [(1, "OrderPlaced"), (2, "OrderRejected")]
    assert items[0]["data"] == {name: order[name] for name in ("user_id", "currency", "lines", "total")}
    assert items[0]["occurred_at"] == order["placed_at"]
    assert items[1]["data"] == {"reason": "CREDIT_EXCEEDED"}


async def test_all_pages_of_a_list_are_read_by_the_cursor(gateway: RunningGateway) -> None:
    token = await gateway.token()
    placed = [(await gateway.place(token, f"k{number}")).json() for number in range(5)]
    page = (await gateway.http.get("/v1/orders?limit=2", headers=token)).json()
    seen = page["items"]
    while page["next_cursor"] is not None:
        params = {"limit": "2", "cursor": page["next_cursor"]}
        page = (await gateway.http.get("/v1/orders", params=params, headers=token)).json()
        seen += page["items"]
    assert seen == placed[::-1]


async def test_a_list_can_be_filtered_by_status(gateway: RunningGateway) -> None:
    token = await gateway.token()
    orders = [(await gateway.place(token, f"k{number}")).json() for number in range(3)]
    await gateway.orders.confirm(orders[1]["id"])
    page = (await gateway.http.get("/v1/orders?status=confirmed", headers=token)).json()
    assert ([item["id"] for item in page["items"]], page["next_cursor"]) == ([orders[1]["id"]], None)


async def test_an_order_of_a_user_who_does_not_exist_is_accepted_as_documented(gateway: RunningGateway) -> None:
    token = await AccessTokenIssuer(gateway.vault).issue(uuid4(), "EUR", 60)
    response = await gateway.place({"authorization": f"Bearer {token}"})
    assert (response.status_code, response.json()["status"]) == (201, "pending")
    document = (await gateway.http.get("/openapi.json")).json()
    assert "USER_UNKNOWN" in document["paths"]["/v1/orders"]["post"]["description"]
