"""Malformed paths, methods, headers and framing get a documented status, and none is a 500."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/users", "/v1/users/7", "/%2e%2e/etc", "/problems/nope", "/problems/EMAIL_TAKEN"],
)
async def test_an_unknown_path_is_404(shared_gateway: RunningGateway, path: str) -> None:
    response = await shared_gateway.http.get(path, headers=await shared_gateway.guest())
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", "/v1/users", {"POST", "OPTIONS"}),
        ("PUT", "/v1/orders", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("DELETE", "/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40", {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", "/livez", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/v1/users", {"POST", "OPTIONS"}),
    ],
)
async def test_another_method_is_405_with_the_allowed_ones(
    shared_gateway: RunningGateway, verb: str, path: str, allowed: set[str]
) -> None:
    response = await shared_gateway.http.request(verb, path)
    assert (response.status_code, response.json()["type"]) == (405, "/problems/method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


def get(*headers: bytes, path: bytes = b"/livez") -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"host: waypost", *headers, b"connection: close", b"", b""])


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /v1/users HTTP/1.1", b"host: waypost", *headers, b"", body])


RAW = [
    (b"NONSENSE\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"CONNECT waypost:443 HTTP/1.1\r\nhost: waypost:443\r\n\r\n", 400),
    (b"\xff /livez HTTP/1.1\r\nhost: waypost\r\n\r\n", 400),
    (b"G\x00T /livez HTTP/1.1\r\nhost: waypost\r\n\r\n", 400),
    (b"G(T) /livez HTTP/1.1\r\nhost: waypost\r\n\r\n", 400),
    (get(path=b"/\xff"), 400),
    (get(path=b"/v1\x00/users"), 400),
    (get(b"no colon"), 400),
    (get(b"name : with a blank"), 400),
    (get(b"x: one", b" and a folded line"), 400),
    (get(b"x: a\x00b"), 400),
    (get(b"x: a\rb"), 400),
    (get(b"x: a\nb: c"), 400),
    (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nhost : waypost\r\n\r\n", 400),
    (get(b"host: waypost"), 400),
    (b"NONE /livez HTTP/1.1\r\n\r\n", 400),
    (b"NONE /livez HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    (b"NONE /livez HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n", 400),
    (b"NONE /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 405),
    (b"GET /livez HTTP/1.1\r\nhost: two words\r\n\r\n", 400),
    (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    (get(b"authorization: Bearer a", b"Authorization: Bearer b"), 400),
    (get(b"idempotency-key: a", b"idempotency-key: a"), 400),
    (post(b"content-length: x"), 400),
    (post(b"content-length: 2", b"transfer-encoding: chunked"), 400),
    (post(b"transfer-encoding: chunked", b"content-type: application/json", body=b"zz\r\n"), 400),
    (post(b"expect: tea", b"content-length: 2", body=b"{}"), 417),
    (get(b"x: " + b"y" * 20_000), 431),
    (get(b"authorization: Bearer \xff\xfe", path=b"/v1/users/me"), 401),
    (get(b"authorization: Bearer " + b"W1tb" * 1500, path=b"/v1/users/me"), 401),
    (get(b"user-agent: \xff\xfe"), 200),
    (get(b"traceparent: \xff"), 200),
]


@pytest.mark.parametrize(("data", "status"), RAW)
async def test_malformed_http_gets_the_right_status(shared_gateway: RunningGateway, data: bytes, status: int) -> None:
    head, _, body = (await shared_gateway.raw(data)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert b"\ntraceresponse: 00-" in head
    assert json.loads(body).get("status") in (status, "alive")


GETS = ["/livez", "/readyz", "/openapi.json", "/docs", "/v1/orders", "/v1/users/me", "/problems/invalid", "/nowhere"]


@pytest.mark.parametrize("path", GETS)
async def test_the_response_to_head_is_that_to_get_without_the_body(shared_gateway: RunningGateway, path: str) -> None:
    token = await shared_gateway.guest()
    head, whole = (
        await shared_gateway.http.head(path, headers=token),
        await shared_gateway.http.get(path, headers=token),
    )
    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("content-type", "cache-control"):
        assert head.headers[name] == whole.headers[name]
    if path in ("/livez", "/docs"):
        assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/sessions", "OPTIONS, POST"),
        ("/v1/orders", "GET, HEAD, OPTIONS, POST"),
        ("/livez", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_returns_the_methods_of_a_path(shared_gateway: RunningGateway, path: str, allow: str) -> None:
    response = await shared_gateway.http.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")
    assert "traceresponse" in response.headers


async def test_an_unread_body_does_not_end_the_connection(shared_gateway: RunningGateway) -> None:
    first = b"POST /nowhere HTTP/1.1\r\nhost: waypost\r\ncontent-length: 3\r\n\r\nabc"
    responses = await shared_gateway.raw(first + get())
    assert re.findall(rb"HTTP/1.1 (\d+)", responses) == [b"404", b"200"]
