"""Users of a running system with some orders, made by its REST API alone, so of any revision."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import httpx

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class BenchUser:
    """The token of a signed-in user, and the ids of orders."""

    token: str
    orders: list[str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def make_users(url: str, count: int, orders: int) -> list[BenchUser]:
    """Registers users one after the other, because passwords are hashed slowly on purpose; each places some orders."""
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        return [_make(http, orders) for _ in range(count)]


def _make(http: httpx.Client, orders: int) -> BenchUser:
    email, password = f"{secrets.token_hex(8)}@bench.example", secrets.token_urlsafe(16)
    _post(http, "/v1/users", {"email": email, "name": "Bench", "password": password}, {})
    session = _post(http, "/v1/sessions", {"email": email, "password": password}, {}).json()
    user = BenchUser(session["access_token"], [])
    for _ in range(orders):
        key = {"Idempotency-Key": secrets.token_hex(16)}
        placed = _post(http, "/v1/orders", {"currency": "EUR", "lines": PENNY}, user.headers | key)
        user.orders.append(placed.json()["id"])
    return user


def _post(http: httpx.Client, path: str, body: object, headers: dict[str, str]) -> httpx.Response:
    """Posts again while the system is busy; raises httpx.HTTPStatusError for any other error."""
    ends_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        reply = http.post(path, json=body, headers=headers)
        if reply.status_code not in {429, 503, 504} or time.monotonic() > ends_at:
            return reply.raise_for_status()
        time.sleep(0.3)
