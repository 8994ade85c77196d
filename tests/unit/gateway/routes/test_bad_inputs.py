"""Invalid bodies and queries, as tables: each row gets a documented problem, and none is a 500."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSON = {"email": "ada@example.com", "name": "Ada", "password": "correct horse"}
LINE = {"sku": "tea", "quantity": 1, "unit_price": 1}
ORDER = {"currency": "EUR", "lines": [LINE]}


def line(**changes: Any) -> dict[str, Any]:
    return ORDER | {"lines": [LINE | changes]}


INVALID = [
    ("/v1/users", {}, ["email", "name", "password"]),
    ("/v1/users", PERSON | {"email": "ada"}, ["email"]),
    ("/v1/users", PERSON | {"email": "a\u0000@b.c"}, ["email"]),
    ("/v1/users", PERSON | {"email": None}, ["email"]),
    ("/v1/users", PERSON | {"email": ["ada@example.com"]}, ["email"]),
    ("/v1/users", PERSON | {"name": 7}, ["name"]),
    ("/v1/users", PERSON | {"name": "\u0000"}, ["name"]),
    ("/v1/users", PERSON | {"name": " "}, ["name"]),
    ("/v1/users", PERSON | {"name": "x" * 201}, ["name"]),
    ("/v1/users", PERSON | {"name": "A\u0000da"}, ["name"]),
    ("/v1/users", PERSON | {"a\u0000": 1}, ["a\u0000"]),
    ("/v1/users", PERSON | {"password": "short"}, ["password"]),
    ("/v1/users", PERSON | {"password": "x" * 257}, ["password"]),
    ("/v1/users", PERSON | {"password": 12345678}, ["password"]),
    ("/v1/users", PERSON | {"admin": True}, ["admin"]),
    ("/v1/users", PERSON | {"id": "1", "credit": 5}, ["id", "credit"]),
    ("/v1/users", [], ["body"]),
    ("/v1/users", "text", ["body"]),
    ("/v1/sessions", {"email": "ada@example.com"}, ["password"]),
    ("/v1/sessions", {"email": "", "password": ""}, ["email", "password"]),
    ("/v1/orders", {}, ["currency", "lines"]),
    ("/v1/orders", ORDER | {"currency": "eur"}, ["currency"]),
    ("/v1/orders", ORDER | {"currency": "EURO"}, ["currency"]),
    ("/v1/orders", ORDER | {"currency": "EUR\n"}, ["currency"]),
    ("/v1/orders", ORDER | {"currency": "ABC"}, ["currency"]),
    ("/v1/orders", ORDER | {"currency": "USD"}, ["currency"]),
    ("/v1/orders", ORDER | {"lines": []}, ["lines"]),
    ("/v1/orders", ORDER | {"lines": [LINE] * 101}, ["lines"]),
    ("/v1/orders", ORDER | {"lines": {"0": LINE}}, ["lines"]),
    ("/v1/orders", ORDER | {"lines": [LINE, 7]}, ["lines[1]"]),
    ("/v1/orders", ORDER | {"total": 1}, ["total"]),
    ("/v1/orders", line(sku=""), ["lines[0].sku"]),
    ("/v1/orders", line(sku="x" * 65), ["lines[0].sku"]),
    ("/v1/orders", line(sku="tea\n"), ["lines[0].sku"]),
    ("/v1/orders", line(sku="'; DROP TABLE orders"), ["lines[0].sku"]),
    ("/v1/orders", line(quantity=0), ["lines[0].quantity"]),
    ("/v1/orders", line(quantity=10_001), ["lines[0].quantity"]),
    ("/v1/orders", line(quantity=1.5), ["lines[0].quantity"]),
    ("/v1/orders", line(quantity=1.0), ["lines[0].quantity"]),
    ("/v1/orders", line(quantity="1"), ["lines[0].quantity"]),
    ("/v1/orders", line(quantity=True), ["lines[0].quantity"]),
    ("/v1/orders", line(unit_price=-1), ["lines[0].unit_price"]),
    ("/v1/orders", line(unit_price=10**9 + 1), ["lines[0].unit_price"]),
    ("/v1/orders", line(unit_price=10**40), ["lines[0].unit_price"]),
    ("/v1/orders", line(discount=1), ["lines[0].discount"]),
]


@pytest.mark.parametrize(("path", "body", "fields"), INVALID)
async def test_an_invalid_body_is_422_and_names_each_field(
    shared_gateway: RunningGateway, path: str, body: Any, fields: list[str]
) -> None:
    headers = await shared_gateway.guest() | {"idempotency-key": "k"}
    response = await shared_gateway.http.post(path, json=body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (422, "/problems/invalid"), response.text
    assert [error["field"] for error in problem["errors"]] == fields
    assert all(error["message"] for error in problem["errors"])


DUPLICATES = [
    (b'{"email": "a@b.c", "password": "x", "email": "e@v.e"}', ["email"]),
    (b'{"email": "a@b.c", "email": "a@b.c", "password": "x", "pass\\u0077ord": "y"}', ["email", "password"]),
]


@pytest.mark.parametrize(("body", "fields"), DUPLICATES)
async def test_a_duplicate_key_is_422_and_named(shared_gateway: RunningGateway, body: bytes, fields: list[str]) -> None:
    response = await shared_gateway.http.post(
        "/v1/sessions", content=body, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid")
    assert [error["field"] for error in response.json()["errors"]] == fields


async def test_a_duplicate_key_in_a_line_of_an_order_is_named_with_its_path(
    shared_gateway: RunningGateway,
) -> None:
    line = b'{"sku": "tea", "quantity": 1, "unit_price": 1, "quantity": 9}'
    body = b'{"currency": "EUR", "lines": [{"sku": "tea", "quantity": 1, "unit_price": 1}, ' + line + b"]}"
    headers = await shared_gateway.guest() | {"idempotency-key": "k", "content-type": "application/json"}
    response = await shared_gateway.http.post("/v1/orders", content=body, headers=headers)
    assert [error["field"] for error in response.json()["errors"]] == ["lines[1].quantity"]


MALFORMED = [
    b"",
    b"{",
    b"nope",
    b'{"email": "a@b.c",}',
    b'{"email": NaN}}',
    b"\xff\xfe",
    b'{"name": "\xff"}',
    b'{"name": "\\ud800"}',
    b'{"email": "a@b.c", "password": "\\udcff"}',
    b'{"email": "a\\ud800@b.c", "password": "x"}',
    b'{"\\ud800": 1}',
    b"[" * 10_000,
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/users", "/v1/sessions", "/v1/orders"])
async def test_malformed_json_is_400(shared_gateway: RunningGateway, path: str, body: bytes) -> None:
    headers = await shared_gateway.guest() | {"idempotency-key": "k", "content-type": "application/json"}
    response = await shared_gateway.http.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["type"]) == (400, "/problems/malformed"), response.text


@pytest.mark.parametrize(
    "changed",
    [
        {"email": "a\u0000@b.c"},
        {"email": "\u0000"},
        {"email": "guest@example.com\u0000"},
        {"email": "guest@example.com", "password": "\u0000"},
        {"email": "\ufdfa@b.c"},
        {"password": "\U0010ffff"},
    ],
)
async def test_credentials_that_no_user_can_have_are_401_like_any_wrong_ones(
    shared_gateway: RunningGateway, changed: dict[str, str]
) -> None:
    body = {"email": "nobody@example.com", "password": "wrong"} | changed
    response = await shared_gateway.http.post("/v1/sessions", json=body)
    assert (response.status_code, response.json()["type"]) == (401, "/problems/bad-credentials"), response.text


TARGETS = [
    ("GET", b"/v1/orders?cursor=\xff"),
    ("GET", b"/v1/orders?status=\xed\xa0\x80"),
    ("GET", b"/v1/orders/%ed%a0%80"),
    ("GET", b"/v1/orders/\xed\xa0\x80"),
    ("GET", b"/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a4\xff/events"),
    ("POST", b"/v1/orders/%ff/cancel"),
    ("GET", b"/v1/orders/%00/watch"),
]


@pytest.mark.parametrize(("verb", "target"), TARGETS)
async def test_bytes_that_no_protobuf_string_can_hold_reach_no_service(
    shared_gateway: RunningGateway, verb: str, target: bytes
) -> None:
    token = (await shared_gateway.guest())["authorization"].encode()
    head = verb.encode() + b" " + target + b" HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: " + token
    response = await shared_gateway.raw(head + b"\r\ncontent-length: 0\r\n\r\n")
    assert int(response.split()[1]) in (400, 404, 422), response


QUERIES = [
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("limit=-1", "limit"),
    ("limit=ten", "limit"),
    ("limit=1e1", "limit"),
    ("limit=1_0", "limit"),
    ("limit=%2B5", "limit"),
    ("limit=+5", "limit"),
    ("limit=%205", "limit"),
    ("limit=%D9%A5", "limit"),
    ("limit=" + "9" * 5000, "limit"),
    ("limit=1&limit=2", "limit"),
    ("limit=", "limit"),
    ("limit", "limit"),
    ("status=", "status"),
    ("status", "status"),
    ("cursor=", "cursor"),
    ("foo=", "foo"),
    ("foo", "foo"),
    ("=", "query"),
    ("=x", "query"),
    ("foo=&foo=", "foo"),
    ("status=&status=pending", "status"),
    ("%66oo=", "foo"),
    ("status=open", "status"),
    ("status=PENDING", "status"),
    ("stauts=pending", "stauts"),
    ("cursor=nope", "cursor"),
    ("cursor=%00", "cursor"),
    ("cursor=%ed%a0%80", "cursor"),
    ("cursor=" + "A" * 22 + "%00", "cursor"),
    ("status=%00", "status"),
    ("%00=1", "\x00"),
    ("%ff=1", "\ufffd"),
    ("cursor=" + "A" * 300, "cursor"),
]


@pytest.mark.parametrize(("query", "field"), QUERIES)
async def test_a_query_that_breaks_a_rule_is_422(shared_gateway: RunningGateway, query: str, field: str) -> None:
    response = await shared_gateway.http.get(f"/v1/orders?{query}", headers=await shared_gateway.guest())
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid")
    assert [error["field"] for error in response.json()["errors"]] == [field]
