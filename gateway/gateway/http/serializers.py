"""Converts messages of the services to JSON, and declares the schema of each JSON body for OpenAPI.

Invariant: money is an integer of minor units, times are RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired

import orjson
from sanic import HTTPResponse
from typing_extensions import TypedDict

from gateway.http.sanic_internals import SecuredResponse
from shop.order.v1 import order_pb2
from shop.user.v1 import user_pb2

OrderState = Literal["pending", "confirmed", "rejected", "cancelled"]
EventType = Literal["OrderPlaced", "OrderConfirmed", "OrderRejected", "OrderCancelled"]


class Credit(TypedDict):
    """Minor units of `currency`."""

    currency: str
    limit: int
    available: int


class Notice(TypedDict):
    """Qualifies a successful response; `type` is the address of a page that explains it."""

    type: str
    title: str
    detail: str


class User(TypedDict):
    """A registered user. With a `problem` it is as of Age seconds ago."""

    id: str
    email: str
    name: str
    credit: Credit
    problem: NotRequired[Notice]


class Session(TypedDict):
    """A token to send as `Authorization: Bearer`; `expires_in` in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int


class OrderLine(TypedDict):
    """`unit_price` in minor units."""

    sku: str
    quantity: int
    unit_price: int


class Order(TypedDict):
    """`total` in minor units of `currency`; `version` counts the events behind this state."""

    id: str
    user_id: str
    status: OrderState
    currency: str
    lines: list[OrderLine]
    total: int
    version: int
    placed_at: str


class OrderPage(TypedDict):
    """Newest first; `next_cursor` is null on the last page."""

    items: list[Order]
    next_cursor: str | None


class OrderEvent(TypedDict):
    """A change of an order."""

    version: int
    type: EventType
    occurred_at: str
    data: dict[str, Any]


class OrderChange(OrderEvent):
    """The data of a Server-Sent Event, whose id is the version and whose name is the type; `status` is since then."""

    status: OrderState


class OrderHistory(TypedDict):
    """Oldest first."""

    items: list[OrderEvent]


class FieldError(TypedDict):
    """An invalid field, like `lines[0].sku`, and the reason."""

    field: str
    message: str


class Problem(TypedDict):
    """RFC 9457; `type` is the address of a page that explains it.

    `instance` and `trace_id` are absent if the head of the request could not be read.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: NotRequired[str]
    trace_id: NotRequired[str]
    errors: NotRequired[list[FieldError]]


class Readiness(TypedDict):
    """`dependencies` and `breakers` by name; a dependency is "ok" or the reason why it is not."""

    status: Literal["starting", "ready", "degraded", "draining"]
    dependencies: dict[str, str]
    breakers: dict[str, str]


class Liveness(TypedDict):
    """The process answers."""

    status: Literal["alive"]


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    """Returns a response with a JSON body."""
    return SecuredResponse(orjson.dumps(body), status, headers, "application/json")


def user(message: user_pb2.User) -> User:
    """Returns the JSON form of a user."""
    credit = message.credit
    return {
        "id": message.id,
        "email": message.email,
        "name": message.name,
        "credit": {"currency": credit.currency, "limit": credit.limit, "available": credit.available},
    }


def session(message: user_pb2.CreateSessionResponse) -> Session:
    """Returns the JSON form of a session."""
    lifetime = message.expires_in.seconds
    return {"access_token": message.access_token, "token_type": "Bearer", "expires_in": lifetime}


def order(message: order_pb2.Order) -> Order:
    """Returns the JSON form of an order."""
    return {
        "id": message.id,
        "user_id": message.user_id,
        "status": STATES[message.status],
        "currency": message.currency,
        "lines": [_line(line) for line in message.lines],
        "total": message.total,
        "version": message.version,
        "placed_at": message.placed_at.ToJsonString(),
    }


def event(message: order_pb2.OrderEvent) -> OrderEvent:
    """Returns the JSON form of an event; raises ValueError if its type is unknown."""
    kind = message.WhichOneof("event")
    if kind is None:
        raise ValueError("unknown type of event")
    name, serialize = _EVENTS[kind]
    return {
        "version": message.version,
        "type": name,
        "occurred_at": message.occurred_at.ToJsonString(),
        "data": serialize(getattr(message, kind)),
    }


def change(message: order_pb2.WatchOrderResponse) -> OrderChange:
    """Returns the JSON form of an event in a watch."""
    return {**event(message.event), "status": STATES[message.status]}


def _line(message: order_pb2.OrderLine) -> OrderLine:
    return {"sku": message.sku, "quantity": message.quantity, "unit_price": message.unit_price}


def _placed(message: order_pb2.OrderPlaced) -> dict[str, Any]:
    return {
        "user_id": message.user_id,
        "currency": message.currency,
        "lines": [_line(line) for line in message.lines],
        "total": message.total,
    }


STATES: Mapping[order_pb2.OrderStatus.ValueType, OrderState] = {
    order_pb2.ORDER_STATUS_PENDING: "pending",
    order_pb2.ORDER_STATUS_CONFIRMED: "confirmed",
    order_pb2.ORDER_STATUS_REJECTED: "rejected",
    order_pb2.ORDER_STATUS_CANCELLED: "cancelled",
}
_EVENTS: Mapping[str, tuple[EventType, Callable[[Any], dict[str, Any]]]] = {
    "placed": ("OrderPlaced", _placed),
    "confirmed": ("OrderConfirmed", lambda _: {}),
    "rejected": ("OrderRejected", lambda message: {"reason": message.reason}),
    "cancelled": ("OrderCancelled", lambda message: {"reason": message.reason}),
}
