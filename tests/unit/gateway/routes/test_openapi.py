"""The OpenAPI document and the pages agree with the routes and with their responses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from gateway.http import serializers
from gateway.http.problems import KINDS
from gateway.routes import openapi

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway


in_module = pytest.mark.asyncio(loop_scope="module")


def routes(shared_gateway: RunningGateway) -> set[tuple[str, str]]:
    found = shared_gateway.server.app.router.routes
    paths = [(re.sub(r"<(\w+)[^>]*>", r"{\1}", f"/{route.path}"), route.methods) for route in found]
    return {(path, method.lower()) for path, methods in paths for method in methods}


@in_module
async def test_exactly_the_routes_of_the_app_are_documented(shared_gateway: RunningGateway) -> None:
    paths = openapi.document()["paths"]
    documented = {(path, verb) for path, verbs in paths.items() for verb in verbs}
    assert documented == routes(shared_gateway)


def test_every_reference_is_defined() -> None:
    document = openapi.document()
    references = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document))
    assert set(references) <= set(document["components"]["schemas"])
    assert references


def test_operations_have_unique_names_and_every_problem_is_documented() -> None:
    names = [operation.name for operation in openapi.OPERATIONS]
    assert len(set(names)) == len(names)
    text = str(openapi.document()["paths"])
    undocumented = {kind.reason for kind in KINDS.values() if kind.type not in text}
    # The gateway returns it as UNAUTHENTICATED.
    assert undocumented == {"USER_UNKNOWN"}


def test_every_operation_that_needs_a_token_is_documented_so() -> None:
    for path, verbs in openapi.document()["paths"].items():
        for operation in verbs.values():
            needs = path.startswith("/v1/orders") or path == "/v1/users/me"
            assert ("security" in operation) is needs
            assert ("401" in operation["responses"]) is (needs or path == "/v1/sessions")


@in_module
async def test_the_document_is_served_as_json(shared_gateway: RunningGateway) -> None:
    response = await shared_gateway.http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == openapi.document()
    assert response.json()["openapi"].startswith("3.1")


@in_module
async def test_the_documentation_page_loads_nothing_else(shared_gateway: RunningGateway) -> None:
    response = await shared_gateway.http.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(src|href)=["'](?!#)""", response.text)
    for operation in openapi.OPERATIONS:
        assert operation.path in response.text


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@in_module
async def test_every_type_of_problem_has_a_page(shared_gateway: RunningGateway, kind: Any) -> None:
    response = await shared_gateway.http.get(kind.type)
    assert response.status_code == 200
    assert kind.title in response.text


@in_module
async def test_responses_have_exactly_the_documented_shape(shared_gateway: RunningGateway) -> None:
    token = await shared_gateway.guest()
    order = (await shared_gateway.place(token)).json()
    get = shared_gateway.http.get
    bodies: list[tuple[Any, Any]] = [
        (serializers.Order, order),
        (serializers.User, (await get("/v1/users/me", headers=token)).json()),
        (serializers.OrderPage, (await get("/v1/orders", headers=token)).json()),
        (serializers.OrderHistory, (await get(f"/v1/orders/{order['id']}/events", headers=token)).json()),
        (serializers.Readiness, (await get("/readyz")).json()),
        (serializers.Liveness, (await get("/livez")).json()),
        (serializers.Problem, (await get("/nowhere")).json()),
    ]
    for shape, body in bodies:
        assert TypeAdapter(shape).validate_python(body, strict=True, extra="forbid") == body
