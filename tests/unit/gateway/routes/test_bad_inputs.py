"""Invalid bodies and queries, as tables: each row gets a documented problem, and none is a 500."""

from __future__ import annotations

import asyncio
import gzip
import json
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


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(shared_gateway: RunningGateway, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = await shared_gateway.http.post("/v1/users", content=json.dumps(PERSON).encode(), headers=headers)
    assert (response.status_code, response.json()["type"]) == (415, "/problems/unsupported-media-type")


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


BODIES = [
    ("/v1/users", PERSON),
    ("/v1/sessions", {"email": "nobody@example.com", "password": "x"}),
    ("/v1/orders", ORDER),
]
CODED = ["gzip", "GZIP", "x-gzip", "br", "deflate", "compress", "zstd", "aes128gcm", "unknown", "gzip, br",
         "identity, gzip", "gzip, identity", ",gzip", "identity,\tgzip", "identity;q=1", "*"]  # fmt: skip


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_body_with_a_content_coding_is_415_and_says_which_is_accepted(
    shared_gateway: RunningGateway, path: str, body: Any, coding: str
) -> None:
    headers = await shared_gateway.guest() | {"idempotency-key": "coded", "content-encoding": coding}
    for content in (gzip.compress(json.dumps(body).encode()), json.dumps(body).encode(), b""):
        sent = headers | {"content-type": "application/json"}
        response = await shared_gateway.http.post(path, content=content, headers=sent)
        assert (response.status_code, response.json()["type"]) == (415, "/problems/unsupported-media-type")
        assert (response.headers["accept-encoding"], "accept-post" in response.headers) == ("identity", False)


async def test_the_lines_of_content_encoding_are_one_list(shared_gateway: RunningGateway) -> None:
    headers = [("content-type", "application/json"), ("content-encoding", "identity"), ("content-encoding", "gzip")]
    response = await shared_gateway.http.post("/v1/users", content=b"{}", headers=headers)
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.parametrize("coding", ["", "identity", "Identity", "identity, identity", ","])
async def test_a_body_without_a_content_coding_is_read(shared_gateway: RunningGateway, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    response = await shared_gateway.http.post("/v1/users", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid")


async def test_another_content_type_says_which_is_accepted(shared_gateway: RunningGateway) -> None:
    response = await shared_gateway.http.post("/v1/users", content=b"{}", headers={"content-type": "text/plain"})
    assert (response.headers["accept-post"], "accept-encoding" in response.headers) == ("application/json", False)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_is_accepted_in_any_spelling_of_its_content_type(shared_gateway: RunningGateway, kind: str) -> None:
    body = json.dumps({"email": "nobody@example.com", "password": "wrong"}).encode()
    response = await shared_gateway.http.post("/v1/sessions", content=body, headers={"content-type": kind})
    assert response.json()["type"] == "/problems/bad-credentials"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(shared_gateway: RunningGateway, chunked: bool) -> None:
    body = json.dumps(PERSON | {"name": "x" * 70_000}).encode()

    async def chunks() -> Any:
        yield body

    response = await shared_gateway.http.post(
        "/v1/users", content=chunks() if chunked else body, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["type"]) == (413, "/problems/body-too-large")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_sends_ten_megabytes_before_it_reads_gets_the_response(
    shared_gateway: RunningGateway, chunked: bool
) -> None:
    size = 10_000_000
    head = b"POST /v1/users HTTP/1.1\r\nhost: waypost\r\ncontent-type: application/json\r\n"
    start = b"transfer-encoding: chunked\r\n\r\n%x\r\n" % size if chunked else b"content-length: %d\r\n\r\n" % size
    reader, writer = await asyncio.open_connection(*shared_gateway.address)
    writer.write(head + start + b"x" * size + (b"\r\n0\r\n\r\n" if chunked else b""))
    await asyncio.wait_for(writer.drain(), 20)
    response = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"/problems/body-too-large" in response


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
