"""Invalid requests of every kind are answered with the documented problem, never with a 500."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from support.mesh.channels import mesh_channel
from support.stack_under_test import RunningStack
from support.traffic.api_user import LINES, ApiUser

USER: dict[str, Any] = {
    "email": "someone@people.example",
    "name": "Someone",
    "password": "a long enough password",
}
_METHODS = {
    "user-service": "/shop.user.v1.UserService/GetUser",
    "order-service": "/shop.order.v1.OrderService/GetOrder",
}
# A message whose first field is the id of a user who does not exist.
_UNKNOWN_ID = b"\x0a\x2401a20ad9-ad31-72d5-8db0-0f031df77a40"
ORDER: dict[str, Any] = {"currency": "EUR", "lines": LINES}


def _line(**changed: Any) -> dict[str, Any]:
    return ORDER | {"lines": [LINES[0] | changed]}


def assert_problem(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem: dict[str, Any] = reply.json()
    assert set(problem) >= {"type", "title", "status", "detail", "instance", "trace_id"}
    assert problem["status"] == status
    assert problem["trace_id"] == reply.headers["traceresponse"].split("-")[1]
    return problem


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 5000, b'{"email": "\\ud800"}', b'{"\\udcff": 1}'])
def test_malformed_json_is_a_400(http: httpx.Client, body: bytes) -> None:
    assert_problem(http.post("/v1/users", content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"email": "no-at-sign"}, "email"),
        ({"email": 7}, "email"),
        ({"email": None}, "email"),
        ({"email": "a\u0000@b.c"}, "email"),
        ({"name": ""}, "name"),
        ({"name": ["a"]}, "name"),
        ({"name": "A\u0000da"}, "name"),
        ({"password": "short"}, "password"),
        ({"password": "x" * 5000}, "password"),
        ({"admin": True}, "admin"),
    ],
)
def test_an_invalid_registration_names_the_field(http: httpx.Client, changed: dict[str, Any], field: str) -> None:
    problem = assert_problem(http.post("/v1/users", json=USER | changed), 422)
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (_line(quantity=0), "lines[0].quantity"),
        (_line(quantity=-1), "lines[0].quantity"),
        (_line(quantity=10_001), "lines[0].quantity"),
        (_line(quantity=1.5), "lines[0].quantity"),
        (_line(quantity="2"), "lines[0].quantity"),
        (_line(quantity=True), "lines[0].quantity"),
        (_line(unit_price=-1), "lines[0].unit_price"),
        (_line(unit_price=10**9 + 1), "lines[0].unit_price"),
        (_line(unit_price=10**400), "lines[0].unit_price"),
        (_line(sku=""), "lines[0].sku"),
        (_line(colour="red"), "lines[0].colour"),
        (ORDER | {"lines": []}, "lines"),
        (ORDER | {"lines": LINES * 101}, "lines"),
        (ORDER | {"lines": "tea"}, "lines"),
        (ORDER | {"currency": "euro"}, "currency"),
        (ORDER | {"currency": 978}, "currency"),
        (ORDER | {"note": "hi"}, "note"),
    ],
)
def test_an_invalid_order_names_the_field(user: ApiUser, body: dict[str, Any], field: str) -> None:
    headers = user.headers | {"Idempotency-Key": "never-used"}
    problem = assert_problem(user.http.post("/v1/orders", json=body, headers=headers), 422)
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("email", ["a\u0000@b.c", "\u0000", "someone@people.example\u0000", "\ufdfa@b.c"])
def test_a_sign_in_with_an_impossible_email_is_a_401(http: httpx.Client, email: str) -> None:
    problem = assert_problem(http.post("/v1/sessions", json={"email": email, "password": "\u0000"}), 401)
    assert problem["type"] == "/problems/bad-credentials"


@pytest.mark.parametrize("key", ["", "two words", b"k\xff", "k" * 201])
def test_an_unusable_idempotency_key_is_a_400(user: ApiUser, key: str | bytes) -> None:
    headers = user.headers | {"Idempotency-Key": key}
    assert_problem(user.http.post("/v1/orders", json=ORDER, headers=headers), 400)


def test_a_body_of_ten_megabytes_is_a_413(http: httpx.Client) -> None:
    body = b'{"name": "' + b"x" * 10_000_000 + b'"}'
    try:
        reply = http.post("/v1/users", content=body, headers={"content-type": "application/json"})
    except httpx.WriteError:
        pytest.fail("the connection was closed without an answer")
    assert_problem(reply, 413)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic dXNlcjpwYXNz",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
        "Bearer eyJhbGciOiJIUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJ4IiwiZXhwIjo5OTk5OTk5OTk5fQ.c2lnbmVk",
    ],
)
def test_a_missing_or_forged_token_is_a_401(http: httpx.Client, token: str) -> None:
    reply = http.get("/v1/users/me", headers={"Authorization": token} if token else {})
    assert_problem(reply, 401)
    assert reply.headers["www-authenticate"].startswith("Bearer")


def test_a_token_with_another_signature_is_a_401(http: httpx.Client, user: ApiUser) -> None:
    head, payload, signature = user.token.split(".")
    other = ("A" if signature[0] != "A" else "B") + signature[1:]
    assert_problem(http.get("/v1/users/me", headers={"Authorization": f"Bearer {head}.{payload}.{other}"}), 401)


@pytest.mark.parametrize("order_id", ["01890a5d-ac96-774b-bcce-b302099a8057", "nonsense", "0", "%00", "x" * 500])
def test_an_unknown_order_is_a_404(user: ApiUser, order_id: str) -> None:
    assert_problem(user.get(f"/v1/orders/{order_id}"), 404)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=many", "limit=100000", "cursor=nonsense", "cursor=%00", "status=lost", "status=%00"],
)
def test_an_invalid_query_names_the_parameter(user: ApiUser, query: str) -> None:
    problem = assert_problem(user.get(f"/v1/orders?{query}"), 422)
    assert [error["field"] for error in problem["errors"]] == [query.partition("=")[0]]


def test_an_unknown_path_is_a_404_and_a_wrong_method_a_405(http: httpx.Client) -> None:
    assert_problem(http.get("/v1/nothing"), 404)
    reply = http.delete("/v1/users")
    assert_problem(reply, 405)
    assert "POST" in reply.headers["allow"]


def test_another_content_type_is_a_415(http: httpx.Client) -> None:
    assert_problem(http.post("/v1/users", content=b"email=a", headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize("service", ["user-service", "order-service"])
@pytest.mark.parametrize("seconds", [3, 2_600_000, 40_000_000])
def test_a_grpc_call_with_a_long_deadline_is_answered(running: RunningStack, service: str, seconds: float) -> None:
    code, _ = _called(running, service, _UNKNOWN_ID, seconds)
    assert code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("service", ["user-service", "order-service"])
@pytest.mark.parametrize("body", [b"\x00", b"\x0a\x7f\xff", b"\x0a\x02\xff\xfe"])
def test_a_grpc_request_that_cannot_be_decoded_is_internal(running: RunningStack, service: str, body: bytes) -> None:
    assert _called(running, service, body, 3) == (grpc.StatusCode.INTERNAL, "the request cannot be decoded")


def _called(running: RunningStack, service: str, body: bytes, seconds: float) -> tuple[grpc.StatusCode, str]:
    """The error of a call of the operator to one instance, sent as bytes."""
    with mesh_channel(running.clients, service) as channel:
        call: Any = channel.unary_unary(_METHODS[service])
        with pytest.raises(grpc.RpcError) as raised:
            call(body, timeout=seconds)
    error: Any = raised.value
    return error.code(), error.details()
