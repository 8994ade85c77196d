"""Every response to requests that are derived from the OpenAPI document is documented in it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.openapi.documented_responses import deviations
from support.openapi.generated_requests import GeneratedRequest, Generator
from support.openapi.json_schema import Schemas

from gateway.routes import openapi

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

in_module = pytest.mark.asyncio(loop_scope="module")

DOCUMENT = openapi.document()
OPERATIONS = [(path, verb) for path, verbs in DOCUMENT["paths"].items() for verb in verbs]


async def send(http: httpx.AsyncClient, request: GeneratedRequest) -> tuple[int, httpx.Headers, bytes]:
    """Returns status, headers and body; a stream without its body, because it may not end."""
    method, headers = request.method.upper(), dict(request.headers)
    async with http.stream(method, request.url, headers=headers, content=request.content or None) as response:
        # Sanic leaves it out where its TOUCHUP runs, which works only once in a process.
        assert response.headers.pop("alt-svc", "") == ""
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        return response.status_code, response.headers, b"" if is_stream else await response.aread()


async def generator(gateway: RunningGateway) -> Generator:
    token = await gateway.guest()
    order = (await gateway.place(token, key="order-of-the-document")).json()
    return Generator(DOCUMENT, {"order_id": order["id"]}, token)


async def undocumented(gateway: RunningGateway, requests: list[GeneratedRequest]) -> dict[str, list[str]]:
    """Returns the deviations by request."""
    found = {}
    for request in requests:
        if deviation := deviations(DOCUMENT, request, *await send(gateway.http, request)):
            found[str(request)] = deviation
    return found


@pytest.mark.parametrize(("path", "verb"), OPERATIONS)
@in_module
async def test_a_valid_request_is_answered_with_the_documented_success(
    shared_gateway: RunningGateway, path: str, verb: str
) -> None:
    request = (await generator(shared_gateway)).valid(path, verb)
    status, headers, body = await send(shared_gateway.http, request)
    assert 200 <= status < 300, body
    assert deviations(DOCUMENT, request, status, headers, body) == []


@pytest.mark.parametrize(("path", "verb"), OPERATIONS)
@in_module
async def test_every_response_to_a_variation_is_documented(
    shared_gateway: RunningGateway, path: str, verb: str
) -> None:
    variations = list((await generator(shared_gateway)).variations(path, verb))
    assert len(variations) > 10
    assert await undocumented(shared_gateway, variations) == {}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
@in_module
async def test_every_response_to_another_method_is_documented(shared_gateway: RunningGateway, path: str) -> None:
    requests = list((await generator(shared_gateway)).methods(path))
    assert {request.method for request in requests} >= {"options", "brew", "delete"}
    assert await undocumented(shared_gateway, requests) == {}


def test_the_document_has_only_keywords_of_json_schema() -> None:
    schemas = Schemas(DOCUMENT)
    found = [schemas.unknown_keywords(each) for each in DOCUMENT["components"]["schemas"].values()]
    for path, verb in OPERATIONS:
        parameters = DOCUMENT["paths"][path][verb].get("parameters", ())
        found += [schemas.unknown_keywords(parameter["schema"]) for parameter in parameters]
    assert set().union(*found) == set()
    assert len(found) > 20


def test_no_parameter_may_be_null() -> None:
    """A parameter is text, so null could not be sent."""
    for path, verb in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][verb].get("parameters", ()):
            schema = parameter["schema"]
            assert not Schemas(DOCUMENT).is_valid(schema, None), parameter["name"]
            assert Schemas(DOCUMENT).is_valid(schema, schema.get("default", Schemas(DOCUMENT).example(schema)))


# --- controls: the comparison finds what is not documented


def response_of(**changes: Any) -> list[str]:
    request = GeneratedRequest("/livez", "get", "get", is_invalid=changes.pop("is_invalid", False))
    sent: dict[str, Any] = {
        "status": 200,
        "headers": {"content-type": "application/json"},
        "body": b'{"status":"alive"}',
    }
    return deviations(changes.pop("document", DOCUMENT), request, **(sent | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": 299}, "status 299 is not documented"),
        ({"status": 500}, "status 500"),
        ({"is_invalid": True}, "status 200"),
        ({"headers": {"content-type": "application/json", "x-else": "1"}}, "header x-else is not documented"),
        ({"headers": {"content-type": "text/plain"}}, "content 'text/plain' is not documented"),
        ({"body": b'{"status":"dead"}'}, "is not valid"),
        ({"body": b"{}"}, "is not valid"),
    ],
)
def test_an_undocumented_response_is_found(changes: dict[str, Any], words: str) -> None:
    assert response_of() == []
    assert any(words in each for each in response_of(**changes))


def test_a_keyword_of_another_language_is_found() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["components"]["schemas"]["Line"]["properties"]["quantity"]["ge"] = 1
    assert Schemas(document).unknown_keywords(document["components"]["schemas"]["Line"]) == {"ge"}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3], [0, 4, 1.5, "1", True, None]),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["a", "aaa"], ["", "aaaa", "b", "a\n", 1]),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, [["a"]], [[], [1], {}, "a"]),
        ({"anyOf": [{"type": "null"}, {"const": 7}]}, [None, 7], [8, "7"]),
        (
            {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False},
            [{"a": 1}],
            [{}, {"a": 2}, {"a": 1, "b": 1}, []],
        ),
        ({"type": "string", "format": "uuid"}, ["01a20ad9-ad31-72d5-8db0-0f031df77a40"], ["01a20ad9", ""]),
    ],
)
def test_a_value_is_compared_with_its_schema(schema: dict[str, Any], valid: list[Any], invalid: list[Any]) -> None:
    schemas = Schemas(DOCUMENT)
    assert [value for value in valid if not schemas.is_valid(schema, value)] == []
    assert [value for value in invalid if schemas.is_valid(schema, value)] == []
