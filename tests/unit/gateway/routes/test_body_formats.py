"""Content type, content coding and size of a body: what is accepted, and the answer to anything else."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from .test_bad_inputs import ORDER, PERSON

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(shared_gateway: RunningGateway, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = await shared_gateway.http.post("/v1/users", content=json.dumps(PERSON).encode(), headers=headers)
    assert (response.status_code, response.json()["type"]) == (415, "/problems/unsupported-media-type")


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
