"""Through the edge of a deployed system, every response to requests derived from the OpenAPI document is documented."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.openapi.documented_responses import deviations
from support.openapi.generated_requests import GeneratedRequest, Generator
from support.traffic.api_user import ApiUser


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    served: dict[str, Any] = http.get("/openapi.json").json()
    return served


def _send(http: httpx.Client, request: GeneratedRequest) -> tuple[int, httpx.Headers, bytes]:
    """Returns status, headers and body; a stream without its body, because it may not end."""
    headers = dict(request.headers)
    with http.stream(request.method.upper(), request.url, headers=headers, content=request.content or None) as response:
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        return response.status_code, response.headers, b"" if is_stream else response.read()


def test_every_response_is_documented(http: httpx.Client, user: ApiUser, document: dict[str, Any]) -> None:
    generator = Generator(document, {"order_id": user.place().json()["id"]}, user.headers)
    requests: list[GeneratedRequest] = []
    for path, verbs in document["paths"].items():
        requests += generator.methods(path)
        for verb in verbs:
            requests += [generator.valid(path, verb), *generator.variations(path, verb)]
    # A wrong password counts against the address of all tests, and a registration takes long.
    requests = [each for each in requests if each.is_invalid or each.path not in ("/v1/users", "/v1/sessions")]
    found = {str(each): found for each in requests if (found := deviations(document, each, *_send(http, each)))}
    assert len(requests) > 300
    assert found == {}
