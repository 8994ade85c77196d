"""A realistic mix of requests: mostly reads of orders just placed, some placing, few sign-ins and cancellations."""

from __future__ import annotations

import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_KNOWN_ORDERS = 50
_LINES = [{"sku": "tea-green", "quantity": 2, "unit_price": 1}]

# In percent of all requests.
SHARES = {
    "read order": 52,
    "list orders": 14,
    "place order": 14,
    "read profile": 8,
    "read events": 5,
    "unknown order": 3,
    "cancel order": 3,
    "sign in": 1,
}


@dataclass
class User:
    """A registered user with the current token and the newest orders."""

    email: str
    password: str
    token: str = field(default="", repr=False)
    renew_at: float = 0.0
    orders: deque[str] = field(default_factory=lambda: deque(maxlen=_KNOWN_ORDERS))

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def signed_in(self, session: dict[str, Any]) -> None:
        """Takes the token of a session, which is renewed after half of its time."""
        self.token = str(session["access_token"])
        self.renew_at = time.monotonic() + float(session["expires_in"]) / 2


@dataclass(frozen=True)
class Call:
    """A request of one kind, the status that it should get, and what to do with the answer."""

    kind: str
    method: str
    path: str
    expected: int = 200
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    json: Any = field(default=None, repr=False)
    learn: Callable[[Any], None] | None = None


class Mix:
    """Chooses the next request; the same seed gives the same sequence of kinds and users."""

    def __init__(self, users: Sequence[User], seed: int = 1) -> None:
        self._users = users
        self._random = random.Random(seed)  # noqa: S311 - it chooses requests, no secrets

    def next(self) -> Call:
        """Returns the next request of a random user. A user without orders places one first."""
        user = self._random.choice(self._users)
        kind = self._random.choices(list(SHARES), list(SHARES.values()))[0]
        if time.monotonic() > user.renew_at:
            kind = "sign in"
        elif not user.orders and kind in {"read order", "read events", "cancel order"}:
            kind = "place order"
        return self._call(kind, user)

    def _call(self, kind: str, user: User) -> Call:
        if kind == "sign in":
            user.renew_at = time.monotonic() + 60  # not again before this one is answered
            credentials = {"email": user.email, "password": user.password}
            return Call(kind, "POST", "/v1/sessions", 201, json=credentials, learn=user.signed_in)
        if kind == "place order":
            headers = user.headers | {"Idempotency-Key": secrets.token_hex(16)}
            body = {"currency": "EUR", "lines": _LINES}
            return Call(kind, "POST", "/v1/orders", 201, headers, body, lambda order: user.orders.append(order["id"]))
        if kind == "cancel order":
            order = self._random.choice(user.orders)
            user.orders.remove(order)
            return Call(kind, "POST", f"/v1/orders/{order}/cancel", headers=user.headers)
        if kind == "unknown order":
            return Call(kind, "GET", f"/v1/orders/{'0' * 8}-0000-7000-8000-{secrets.token_hex(6)}", 404, user.headers)
        paths = {"list orders": "/v1/orders", "read profile": "/v1/users/me"}
        if kind in paths:
            return Call(kind, "GET", paths[kind], headers=user.headers)
        order = self._random.choice(user.orders)
        return Call(
            kind, "GET", f"/v1/orders/{order}" + ("/events" if kind == "read events" else ""), 200, user.headers
        )
