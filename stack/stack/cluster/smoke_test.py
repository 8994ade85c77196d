"""The smoke test of a deploy: a person registers, signs in and places an order, which has to be confirmed."""

from __future__ import annotations

import secrets
import time
from typing import Any

import httpx

from stack.config import Stack
from stack.console import StackError

PATIENCE = 20.0


def ready(stack: Stack) -> str:
    """Says that the gateway is ready, or refuses with what it answers."""
    with httpx.Client(base_url=stack.url("gateway"), timeout=10) as http:
        reply = http.get("/readyz")
    if reply.status_code != httpx.codes.OK:
        raise StackError("the gateway is not ready", reply.text, "./justw status")
    return "ready"


def place_an_order(stack: Stack) -> str:
    """Places a real order through the gateway; says its id and trace."""
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
    """Posts; a service that came up a moment ago is given time, any other refusal is the test's result."""
    until = time.monotonic() + PATIENCE
    while True:
        reply = http.post(path, json=body, headers=headers)
        if reply.status_code == httpx.codes.CREATED:
            return reply
        if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            raise StackError(f"POST {path} answered {reply.status_code}", reply.text, "./justw logs gateway")
        time.sleep(0.5)


def _wait_confirmed(http: httpx.Client, order: dict[str, Any]) -> None:
    until = time.monotonic() + PATIENCE
    while order["status"] != "confirmed":
        if order["status"] != "pending" or time.monotonic() > until:
            raise StackError(
                f"order {order['id']} is {order['status']}",
                "it should be confirmed",
                "./justw logs order-service",
            )
        time.sleep(0.1)
        order = http.get(f"/v1/orders/{order['id']}").raise_for_status().json()
