"""A table of what callers get wrong: each row is a documented problem, and none is a 500."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import System

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
async def test_what_breaks_a_rule_is_422_and_names_each_field(
    shared: System, path: str, body: Any, fields: list[str]
) -> None:
    headers = await shared.guest() | {"idempotency-key": "k"}
    answer = await shared.http.post(path, json=body, headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/invalid"), answer.text
    assert [error["field"] for error in problem["errors"]] == fields
    assert all(error["message"] for error in problem["errors"])


MALFORMED = [
    b"",
    b"{",
    b"nope",
    b'{"email": "a@b.c",}',
    b'{"email": NaN}}',
    b"\xff\xfe",
    b'{"name": "\xff"}',
    b'{"name": "\\ud800"}',
    b"[" * 10_000,
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/users", "/v1/sessions", "/v1/orders"])
async def test_what_is_no_json_is_400(shared: System, path: str, body: bytes) -> None:
    headers = await shared.guest() | {"idempotency-key": "k", "content-type": "application/json"}
    answer = await shared.http.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed"), answer.text


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(shared: System, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = await shared.http.post("/v1/users", content=json.dumps(PERSON).encode(), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-media-type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_by_any_spelling_is_taken(shared: System, kind: str) -> None:
    body = json.dumps({"email": "nobody@example.com", "password": "wrong"}).encode()
    answer = await shared.http.post("/v1/sessions", content=body, headers={"content-type": kind})
    assert answer.json()["type"] == "/problems/bad-credentials"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(shared: System, chunked: bool) -> None:
    body = json.dumps(PERSON | {"name": "x" * 70_000}).encode()

    async def chunks() -> Any:
        yield body

    answer = await shared.http.post(
        "/v1/users", content=chunks() if chunked else body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")


QUERIES = [
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("limit=-1", "limit"),
    ("limit=ten", "limit"),
    ("limit=1e1", "limit"),
    ("limit=1&limit=2", "limit"),
    ("status=open", "status"),
    ("status=PENDING", "status"),
    ("stauts=pending", "stauts"),
    ("cursor=nope", "cursor"),
    ("cursor=%00", "cursor"),
    ("cursor=" + "A" * 300, "cursor"),
]


@pytest.mark.parametrize(("query", "field"), QUERIES)
async def test_a_query_that_breaks_a_rule_is_422(shared: System, query: str, field: str) -> None:
    answer = await shared.http.get(f"/v1/orders?{query}", headers=await shared.guest())
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/users", "/v1/users/7", "/%2e%2e/etc", "/problems/nope", "/problems/EMAIL_TAKEN"],
)
async def test_an_unknown_path_is_404(shared: System, path: str) -> None:
    answer = await shared.http.get(path, headers=await shared.guest())
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", "/v1/users", {"POST"}),
        ("PUT", "/v1/orders", {"GET", "POST"}),
        ("DELETE", "/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40", {"GET"}),
        ("PATCH", "/livez", {"GET"}),
        ("OPTIONS", "/v1/sessions", {"POST"}),
        ("BREW", "/v1/users", {"POST"}),
    ],
)
async def test_another_method_is_405_and_told_which_are_allowed(
    shared: System, verb: str, path: str, allowed: set[str]
) -> None:
    answer = await shared.http.request(verb, path)
    assert (answer.status_code, answer.json()["type"]) == (405, "/problems/method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


RAW = [
    (b"NONSENSE\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
    (b"POST /v1/users HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
    (b"POST /v1/users HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    (b"POST /v1/users HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n", 400),
    (b"POST /v1/users HTTP/1.1\r\nexpect: tea\r\ncontent-length: 2\r\n\r\n{}", 417),
    (b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
    (b"GET /v1/users/me HTTP/1.1\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n", 401),
    (b"GET /livez HTTP/1.1\r\ntraceparent: \xff\r\nconnection: close\r\n\r\n", 200),
]


@pytest.mark.parametrize(("data", "status"), RAW)
async def test_broken_http_is_answered_in_kind(shared: System, data: bytes, status: int) -> None:
    head, _, body = (await shared.raw(data)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert b"\ntraceresponse: 00-" in head
    assert json.loads(body).get("status") in (status, "alive")
