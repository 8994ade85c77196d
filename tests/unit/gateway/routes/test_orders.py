"""Orders from the outside."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from ..system import System


@pytest.mark.parametrize("key", [None, "", "two words", "k" * 201, "tab\there", "ünï"])
async def test_an_order_without_a_usable_key_is_refused(system: System, key: str | None) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (await system.token()).items()]
    headers += [] if key is None else [(b"idempotency-key", key.encode())]
    body = {"currency": "EUR", "lines": [{"sku": "tea", "quantity": 1, "unit_price": 1}]}
    answer = await system.http.post("/v1/orders", json=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/idempotency-key-missing")


async def test_a_key_with_another_body_is_refused(system: System) -> None:
    token = await system.token()
    await system.place(token)
    answer = await system.place(token, currency="SEK")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/idempotency-key-reused")


async def test_an_order_is_pending_and_says_where_it_is(system: System) -> None:
    answer = await system.place(await system.token())
    order = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/orders/{order['id']}"
    assert answer.headers["etag"] == '"1"'
    assert (order["status"], order["total"], order["version"]) == ("pending", 300, 1)
    assert order["placed_at"].endswith("Z")
    assert datetime.fromisoformat(order["placed_at"]).tzinfo is not None


async def test_a_repeat_is_the_same_answer_also_after_the_order_moved_on(system: System) -> None:
    token = await system.token()
    first = await system.place(token)
    await system.worker.confirm(first.json()["id"])
    again = await system.place(token)
    for answer in (first, again):
        assert answer.status_code == 201
    assert first.content == again.content
    assert [again.headers[name] for name in ("location", "etag")] == [first.headers["location"], '"1"']


async def test_duplicates_at_the_same_time_get_one_answer(system: System) -> None:
    token = await system.token()
    answers = await asyncio.gather(*(system.place(token) for _ in range(8)))
    assert len({answer.content for answer in answers}) == 1


async def test_one_sees_ones_own_last_write_with_its_etag(system: System) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    await system.worker.confirm(order["id"])
    answer = await system.http.get(f"/v1/orders/{order['id']}", headers=token)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert answer.json() == order | {"status": "confirmed", "version": 2}


@pytest.mark.parametrize("suffix", ["", "/events", "/cancel"])
async def test_an_order_of_someone_else_is_not_there(system: System, suffix: str) -> None:
    order = (await system.place(await system.token())).json()
    eve = await system.token("eve@example.com")
    verb = "POST" if suffix == "/cancel" else "GET"
    for name in (order["id"], str(uuid4()), "7", "../../x", "0" * 36, "%00"):
        answer = await system.http.request(verb, f"/v1/orders/{name}{suffix}", headers=eve)
        assert (answer.status_code, answer.json()["status"]) == (404, 404)


# Where the order has version 2.
OTHERS = ['"1"', 'W/"2"', '"x"', "2", '""', '"1", "3"', '"99999999999999999999"', '"02"', '"+2"', '"2 "', 'x"2"y',
          '*, "2"', '"2", *', '"2" "1"', '"2";', '"2"x', 'w/"2"', 'W/ "2"', '"2', "'2'", ",", '"1, "2"']  # fmt: skip


@pytest.mark.parametrize("tag", OTHERS)
async def test_a_cancellation_of_another_version_is_refused(system: System, tag: str) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    await system.worker.confirm(order["id"])
    answer = await system.http.post(f"/v1/orders/{order['id']}/cancel", headers=token | {"if-match": tag})
    assert (answer.status_code, answer.json()["type"]) == (412, "/problems/version-mismatch")


@pytest.mark.parametrize("tag", [None, "*", '"2"', '"1", "2"', '"1","2"', ', W/"1" ,, "a,b"\t,"2",'])
async def test_the_version_one_has_seen_is_cancelled(system: System, tag: str | None) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    await system.worker.confirm(order["id"])
    headers = token | ({} if tag is None else {"if-match": tag})
    answer = await system.http.post(f"/v1/orders/{order['id']}/cancel", headers=headers)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    assert answer.json()["status"] == "cancelled"


async def test_what_is_final_is_not_cancelled(system: System) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    await system.worker.reject(order["id"])
    answer = await system.http.post(f"/v1/orders/{order['id']}/cancel", headers=token)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/order-closed")


async def test_the_history_tells_what_happened(system: System) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    await system.worker.reject(order["id"])
    items = (await system.http.get(f"/v1/orders/{order['id']}/events", headers=token)).json()["items"]
    assert [(item["version"], item["type"]) for item in items] == [(1, "OrderPlaced"), (2, "OrderRejected")]
    assert items[0]["data"] == {name: order[name] for name in ("user_id", "currency", "lines", "total")}
    assert items[0]["occurred_at"] == order["placed_at"]
    assert items[1]["data"] == {"reason": "CREDIT_EXCEEDED"}


async def test_a_list_is_walked_by_its_cursor(system: System) -> None:
    token = await system.token()
    placed = [(await system.place(token, f"k{number}")).json() for number in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        params = {"limit": "2", "cursor": cursor, "status": ""}
        page = (await system.http.get("/v1/orders", params=params, headers=token)).json()
        seen += page["items"]
        cursor = page["next_cursor"]
    assert seen == placed[::-1]


async def test_a_list_can_be_narrowed_to_a_status(system: System) -> None:
    token = await system.token()
    orders = [(await system.place(token, f"k{number}")).json() for number in range(3)]
    await system.worker.confirm(orders[1]["id"])
    page = (await system.http.get("/v1/orders?status=confirmed", headers=token)).json()
    assert ([item["id"] for item in page["items"]], page["next_cursor"]) == ([orders[1]["id"]], None)
