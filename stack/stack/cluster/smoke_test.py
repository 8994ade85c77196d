"""The smoke test of a deploy: a user registers, signs in and places an order, which has to be confirmed."""

from __future__ import annotations

import secrets
from typing import Any

import httpx

from stack.config import Stack
from stack.console import StackError
from stack.waiting import poll, wait_until

PATIENCE = 20.0


def ready(stack: Stack) -> str:
    """Returns "ready"; raises StackError with the answer of a gateway that is not."""
    with httpx.Client(base_url=stack.url("gateway"), timeout=10) as http:
        reply = http.get("/readyz")
    if reply.status_code != httpx.codes.OK:
        raise StackError("the gateway is not ready", reply.text, "./justw status")
    return "ready"


def place_an_order(stack: Stack) -> str:
    """Places a real order through the gateway and returns how to see its trace."""
    with httpx.Client(base_url=stack.url("gateway"), timeout=10) as http:
        email, password = f"smoke-{secrets.token_hex(6)}@waypost.example", secrets.token_urlsafe(16)
        _post(http, "/v1/users", {"email": email, "name": "Smoke Test", "password": password})
        session = _post(http, "/v1/sessions", {"email": email, "password": password})
        http.headers["Authorization"] = f"Bearer {session.json()['access_token']}"
        lines = [{"sku": "smoke-test", "quantity": 2, "unit_price": 150}]
        placed = _post(
            http,
            "/v1/orders",
            {"currency": "EUR", "lines": lines},
            {"Idempotency-Key": secrets.token_hex(16)},
        )
        _wait_confirmed(http, placed.json())
        trace = placed.headers["traceresponse"].split("-")[1]
    return f"order confirmed; see it with ./justw trace {trace}"


def _post(http: httpx.Client, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    """Posts, again while a service that has just started is unavailable; raises StackError for any other answer."""

    def attempt() -> httpx.Response | None:
        reply = http.post(path, json=body, headers=headers)
        return None if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE else reply

    failure = StackError(f"POST {path} answered 503", f"for {PATIENCE:.0f} s", "./justw logs gateway")
    reply = wait_until(attempt, PATIENCE, lambda: failure, interval=0.5)
    if reply.status_code != httpx.codes.CREATED:
        raise StackError(f"POST {path} answered {reply.status_code}", reply.text, "./justw logs gateway")
    return reply


def _wait_confirmed(http: httpx.Client, order: dict[str, Any]) -> None:
    def status() -> str:
        return str(http.get(f"/v1/orders/{order['id']}").raise_for_status().json()["status"])

    last = poll(lambda: (found := status()) != "pending" and found, PATIENCE) or "pending"
    if last != "confirmed":
        raise StackError(f"order {order['id']} is {last}", "it should be confirmed", "./justw logs order-service")
