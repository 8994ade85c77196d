"""Builds the OpenAPI 3.1 document from a table of operations and from the models that requests are validated with.

Invariant: a test compares the table with the routes.
"""
# ruff: noqa: E501 - an operation a line reads as a table

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gateway.http import serializers
from gateway.http.problems import KINDS, Kind
from gateway.http.schemas import LAST_EVENT_ID, Credentials, OrderQuery, Placement, Registration

_ANY_OPERATION = (
    "MALFORMED",
    "FORBIDDEN",
    "METHOD_NOT_ALLOWED",
    "REQUEST_TIMEOUT",
    "VERSION_MISMATCH",
    "BODY_TOO_LARGE",
    "EXPECTATION_FAILED",
    "HEADERS_TOO_LARGE",
    "INTERNAL",
    "ANSWER_LOST",
    "UNAVAILABLE",
    "BREAKER_OPEN",
    "BULKHEAD_FULL",
    "OVERLOADED",
    "DEADLINE_EXCEEDED",
)
_WITH_BODY = ("UNSUPPORTED_MEDIA_TYPE", "INVALID")
_ORDER_ID = {
    "name": "order_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "1 to 200 visible ASCII characters, a new one for each new order",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$", "examples": ["8d1c2e9a-5b7f"]},
}
_CONDITIONS = (
    {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "description": "ETags of the only versions for which the request is meant, or *",
        "schema": {"type": "string"},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "description": "ETags of the versions for which the request is not meant, or *",
        "schema": {"type": "string"},
    },
)
_LAST_EVENT_ID = {
    "name": LAST_EVENT_ID,
    "in": "header",
    "required": False,
    "description": "id of the last event that was received; none: from the beginning",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$", "examples": ["1"]},
}
_FINAL = {204: "the order is final and every event of it was received: do not reconnect"}
_HEADERS = {
    "Age": "seconds since this was true; absent: it is true now",
    "Location": "path of what was created",
    "ETag": "version of the order, quoted",
    "Allow": "methods of this path",
    "Retry-After": "seconds after which to try again",
    "WWW-Authenticate": "always Bearer",
    "Accept-Post": "present if the Content-Type is wrong: the accepted one",
    "Accept-Encoding": "present if the body has a content coding: the accepted one",
    "X-Accel-Buffering": "always no: asks proxies to pass each event on immediately",
    "traceresponse": "W3C trace context; absent if the head of the request could not be read",
    "Cache-Control": "always no-store",
    "Content-Security-Policy": "forbids scripts",
    "X-Content-Type-Options": "always nosniff",
}
_EVERY_RESPONSE = ("traceresponse", "Cache-Control", "Content-Security-Policy", "X-Content-Type-Options")
_WITH_STATUS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    415: ("Accept-Post", "Accept-Encoding"),
    429: ("Retry-After",),
    502: ("Retry-After",),
    503: ("Retry-After",),
}


@dataclass(frozen=True)
class Operation:
    """An operation with its inputs, its response and the problems that may end it."""

    verb: str
    path: str
    name: str
    summary: str
    response: Any = None
    status: int = 200
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    parameters: Sequence[dict[str, Any]] = ()
    headers: Sequence[str] = ()
    token: bool = False
    problems: Sequence[str] = ()
    media: str = "application/json"
    also: Mapping[int, str] = field(default_factory=dict)
    description: str = ""


_PLACED = (
    "An order is accepted as pending without a look at the user's credit, so orders can be placed while users are "
    "unavailable. Soon after, it is confirmed, or rejected with the reason in its OrderRejected event: CREDIT_EXCEEDED, "
    "CURRENCY_MISMATCH, or USER_UNKNOWN if the user of the token does not exist any more."
)
OPERATIONS = (
    Operation("post", "/v1/users", "registerUser", "Register a user.", serializers.User, 201, Registration, headers=("Location",), problems=("EMAIL_TAKEN", "STORAGE_FULL")),
    Operation("post", "/v1/sessions", "createSession", "Exchange email and password for an access token.", serializers.Session, 201, Credentials, problems=("BAD_CREDENTIALS",)),
    Operation("get", "/v1/users/me", "getMe", "Read the signed-in user with the available credit; as last read, with its Age, while the current state is unavailable.", serializers.User, headers=("Age",), token=True, problems=("STALE",)),
    Operation("post", "/v1/orders", "placeOrder", "Place an order; the same Idempotency-Key and body again return the same order.", serializers.Order, 201, Placement, parameters=(_KEY,), headers=("Location", "ETag"), token=True, problems=("IDEMPOTENCY_KEY_MISSING", "IDEMPOTENCY_KEY_REUSED", "BACKLOG", "STORAGE_FULL"), description=_PLACED),
    Operation("get", "/v1/orders", "listOrders", "List the orders of the signed-in user, newest first; a moment behind.", serializers.OrderPage, query=OrderQuery, token=True, problems=("INVALID",)),
    Operation("get", "/v1/orders/{order_id}", "getOrder", "Read an order.", serializers.Order, parameters=(_ORDER_ID, *_CONDITIONS), headers=("ETag",), token=True, problems=("ORDER_UNKNOWN", "HISTORY_NEWER")),
    Operation("post", "/v1/orders/{order_id}/cancel", "cancelOrder", "Cancel a pending or confirmed order.", serializers.Order, parameters=(_ORDER_ID, *_CONDITIONS), headers=("ETag",), token=True, problems=("ORDER_UNKNOWN", "HISTORY_NEWER", "ORDER_CLOSED", "CONFLICT", "STORAGE_FULL")),
    Operation("get", "/v1/orders/{order_id}/events", "listOrderEvents", "Read the history of an order, oldest event first.", serializers.OrderHistory, parameters=(_ORDER_ID, *_CONDITIONS), headers=("ETag",), token=True, problems=("ORDER_UNKNOWN", "HISTORY_NEWER")),
    Operation("get", "/v1/orders/{order_id}/watch", "watchOrder", "Follow an order as Server-Sent Events: its history, then each event as it happens.", serializers.OrderChange, parameters=(_ORDER_ID, _LAST_EVENT_ID), headers=("X-Accel-Buffering",), token=True, problems=("ORDER_UNKNOWN", "HISTORY_NEWER", "INVALID"), media="text/event-stream", also=_FINAL),
    Operation("get", "/livez", "livez", "Report that the process responds.", serializers.Liveness),
    Operation("get", "/readyz", "readyz", "Report whether to send requests here (503: no), and the state of each dependency.", serializers.Readiness, also={503: "not ready"}),
    Operation("get", "/openapi.json", "getOpenapi", "Read this interface as an OpenAPI 3.1 document."),
    Operation("get", "/docs", "getDocs", "Read this interface as a page.", media="text/html"),
    Operation("get", "/problems/{name}", "getProblem", "Read the meaning of a type of problem.", media="text/html", parameters=({"name": "name", "in": "path", "required": True, "schema": {"enum": [kind.name for kind in KINDS.values()]}},), problems=("NOT_FOUND",)),
)  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """Returns the document, which is shared: do not modify it."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.verb] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Waypost",
            "version": "1",
            "description": "Orders on credit. Money is in integer minor units, times are RFC 3339 in UTC, "
            "errors are RFC 9457 problems. HEAD is answered like GET, without a body. OPTIONS is answered on every path "
            "with 204 and the header Allow, any other method with 405.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    parameters = [*operation.parameters, *_query(operation.query)]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {"required": True, "content": _content("application/json", operation.body)}
    if operation.token:
        described["security"] = [{"token": []}]
    described["responses"] = _responses(operation)
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    notices = [KINDS[reason] for reason in operation.problems if KINDS[reason].status == 200]
    success = {
        "description": "; ".join(["success", *(_title(kind) for kind in notices)]),
        "headers": _headers(operation.headers),
        "content": _content(operation.media, operation.response),
    }
    responses = {str(operation.status): success}
    if operation.verb == "get":
        responses["304"] = {
            "description": "not modified: If-None-Match matches",
            "headers": _headers(operation.headers),
        }
    reasons = [*operation.problems, *_ANY_OPERATION, *(_WITH_BODY if operation.body else ())]
    reasons += ["UNAUTHENTICATED"] if operation.token else []
    reasons += ["TOO_MANY_REQUESTS"] if operation.path.startswith("/v1/") else []
    for status in sorted({KINDS[reason].status for reason in reasons} - {200}):
        responses[str(status)] = _problem_response(
            status, [KINDS[reason] for reason in reasons if KINDS[reason].status == status]
        )
    for status, text in operation.also.items():
        _add(responses, operation, status, text)
    return responses


def _add(responses: dict[str, Any], operation: Operation, status: int, text: str) -> None:
    """Documents a further response of the operation's own; a status with content has the shape of its success."""
    response = responses.setdefault(str(status), {"description": text, "headers": _headers(())})
    if "content" in response:
        response["description"] = f"{text}; {response['description']}"
        response["content"] |= _content(operation.media, operation.response)


def _problem_response(status: int, kinds: Sequence[Kind]) -> dict[str, Any]:
    return {
        "description": "; ".join(_title(kind) for kind in kinds),
        "headers": _headers(_WITH_STATUS.get(status, ())),
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, *_EVERY_RESPONSE)}


def _title(kind: Kind) -> str:
    return f"{kind.title} ({kind.type})"


def _query(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    properties = model.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in properties.items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema without the null that stands for an absent parameter, because no request can contain it."""
    if schema.get("default", "") is not None:
        return schema
    (sent,) = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return {**{name: value for name, value in schema.items() if name not in ("anyOf", "default")}, **sent}


def _content(media: str, shape: Any) -> dict[str, Any]:
    return {media: {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"} if shape else {}}}


def _schemas() -> dict[str, Any]:
    sent = [operation.body for operation in OPERATIONS if operation.body]
    returned = [operation.response for operation in OPERATIONS if operation.response]
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (shape.__name__, "validation", TypeAdapter(shape))
        for shape in dict.fromkeys([*sent, *returned, serializers.Problem])
    ]
    _, definitions = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    return dict(definitions["$defs"])
