"""A user of the REST API: registers, signs in, orders. Every test registers its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import httpx
from support.stack_under_test import eventually

RETRYABLE = {httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS}
LINES = [{"sku": "tea-green", "quantity": 2, "unit_price": 350}]


@dataclass
class ApiUser:
    """A registered and signed-in user."""

    http: httpx.Client
    id: str
    email: str
    password: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, headers=self.headers | more.pop("headers", {}), **more)

    def credit(self) -> int:
        return int(self.get("/v1/users/me").json()["credit"]["available"])

    def place(self, lines: Any = None, currency: str = "EUR", key: str | None = None) -> httpx.Response:
        body = {"currency": currency, "lines": LINES if lines is None else lines}
        headers = self.headers | {"Idempotency-Key": key or secrets.token_hex(16)}
        return self.http.post("/v1/orders", json=body, headers=headers)

    def order(self, order_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/orders/{order_id}").raise_for_status().json()
        return found

    def settled(self, order_id: str, seconds: float = 15) -> dict[str, Any]:
        """Waits until the order is no longer pending, and returns it; tries again while the service is unavailable."""

        def look() -> dict[str, Any] | None:
            reply = self.get(f"/v1/orders/{order_id}")
            if reply.status_code in RETRYABLE:
                return None
            found: dict[str, Any] = reply.raise_for_status().json()
            return found if found["status"] != "pending" else None

        return eventually(f"order {order_id} is settled", look, seconds)

    def cancel(self, order_id: str, **headers: str) -> httpx.Response:
        return self.http.post(f"/v1/orders/{order_id}/cancel", headers=self.headers | headers)


def register(http: httpx.Client) -> ApiUser:
    """Registers and signs in a new user; tries again while the service is unavailable."""
    return eventually("a user can register and sign in", lambda: _register(http), 20, every=0.5)


def _register(http: httpx.Client) -> ApiUser | None:
    email, password = f"{secrets.token_hex(8)}@people.example", secrets.token_urlsafe(16)
    made = http.post("/v1/users", json={"email": email, "name": "Test ApiUser", "password": password})
    session = http.post("/v1/sessions", json={"email": email, "password": password}) if made.is_success else made
    if session.status_code in RETRYABLE:
        return None
    session.raise_for_status()
    return ApiUser(http, made.json()["id"], email, password, session.json()["access_token"])
