"""The document and the pages agree with the routes and with what is answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from gateway.http import serializers
from gateway.http.problems import KINDS
from gateway.routes import openapi

if TYPE_CHECKING:
    from ..system import System


in_module = pytest.mark.asyncio(loop_scope="module")


def routes(shared: System) -> set[tuple[str, str]]:
    found = shared.server.app.router.routes
    paths = [(re.sub(r"<(\w+)[^>]*>", r"{\1}", f"/{route.path}"), route.methods) for route in found]
    return {(path, method.lower()) for path, methods in paths for method in methods}


@in_module
async def test_every_route_is_documented_and_every_documented_route_is_there(shared: System) -> None:
    paths = openapi.document()["paths"]
    documented = {(path, verb) for path, verbs in paths.items() for verb in verbs}
    assert documented == routes(shared)


def test_every_reference_leads_somewhere() -> None:
    document = openapi.document()
    references = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document))
    assert set(references) <= set(document["components"]["schemas"])
    assert references


def test_operations_have_names_of_their_own_and_every_problem_is_documented() -> None:
    names = [operation.name for operation in openapi.OPERATIONS]
    assert len(set(names)) == len(names)
    text = str(openapi.document()["paths"])
    undocumented = {kind.reason for kind in KINDS.values() if kind.type not in text}
    # These end a request before it is known which operation it is, or have no operation at all.
    assert undocumented == {"METHOD_NOT_ALLOWED", "EXPECTATION_FAILED", "HEADERS_TOO_LARGE", "USER_UNKNOWN"}


def test_every_operation_that_needs_a_token_says_so() -> None:
    for path, verbs in openapi.document()["paths"].items():
        for operation in verbs.values():
            needs = path.startswith("/v1/orders") or path == "/v1/users/me"
            assert ("security" in operation) is needs
            assert ("401" in operation["responses"]) is (needs or path == "/v1/sessions")


@in_module
async def test_the_document_is_served_as_json(shared: System) -> None:
    answer = await shared.http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == openapi.document()
    assert answer.json()["openapi"].startswith("3.1")


@in_module
async def test_the_page_needs_nothing_from_elsewhere(shared: System) -> None:
    answer = await shared.http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(src|href)=["'](?!#)""", answer.text)
    for operation in openapi.OPERATIONS:
        assert operation.path in answer.text


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@in_module
async def test_every_type_of_problem_has_a_page(shared: System, kind: Any) -> None:
    answer = await shared.http.get(kind.type)
    assert answer.status_code == 200
    assert kind.title in answer.text


@in_module
async def test_answers_have_exactly_the_documented_shape(shared: System) -> None:
    token = await shared.guest()
    order = (await shared.place(token)).json()
    get = shared.http.get
    told: list[tuple[Any, Any]] = [
        (serializers.Order, order),
        (serializers.User, (await get("/v1/users/me", headers=token)).json()),
        (serializers.OrderPage, (await get("/v1/orders", headers=token)).json()),
        (serializers.OrderHistory, (await get(f"/v1/orders/{order['id']}/events", headers=token)).json()),
        (serializers.Readiness, (await get("/readyz")).json()),
        (serializers.Liveness, (await get("/livez")).json()),
        (serializers.Problem, (await get("/nowhere")).json()),
    ]
    for shape, body in told:
        assert TypeAdapter(shape).validate_python(body, strict=True, extra="forbid") == body
