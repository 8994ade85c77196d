"""Decides which events may happen to an order, and applies events to it. Money is in minor units.

Invariant: an order is the fold of its events. Deciding may raise a DomainError; applying a recorded event never does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from shop_contract.currencies import CURRENCIES

_SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LARGEST_TOTAL = 2**63 - 1
REQUESTED = "REQUESTED"
"""Reason of a cancellation by the user who placed the order."""


class DomainError(Exception):
    """A rule of the domain does not allow the command."""


class Invalid(DomainError):  # noqa: N818 - the reason itself
    """The command has invalid fields; `fields` maps each of them to its error."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(f"not valid: {', '.join(fields)}")
        self.fields = dict(fields)


class OrderUnknown(DomainError):  # noqa: N818 - the reason itself
    """The user has no such order."""


class OrderClosed(DomainError):  # noqa: N818 - the reason itself
    """The order has a final status."""


class VersionMismatch(DomainError):  # noqa: N818 - the reason itself
    """The order has none of the versions that the caller expects."""


class Status(StrEnum):
    """The state of an order; rejected and cancelled are final."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True if no event may follow."""
        return not TRANSITIONS[self]


@dataclass(frozen=True)
class Line:
    """An item of an order."""

    sku: str
    quantity: int
    unit_price: int


@dataclass(frozen=True)
class OrderPlaced:
    """A user ordered these lines."""

    user_id: UUID
    currency: str
    lines: tuple[Line, ...]
    total: int


@dataclass(frozen=True)
class OrderConfirmed:
    """Credit for the order was reserved."""


@dataclass(frozen=True)
class OrderRejected:
    """Credit for the order was denied."""

    reason: str


@dataclass(frozen=True)
class OrderCancelled:
    """The order was cancelled."""

    reason: str = REQUESTED


Event = OrderPlaced | OrderConfirmed | OrderRejected | OrderCancelled

TRANSITIONS: Mapping[Status | None, Mapping[type[Event], Status]] = {
    None: {OrderPlaced: Status.PENDING},
    Status.PENDING: {
        OrderConfirmed: Status.CONFIRMED,
        OrderRejected: Status.REJECTED,
        OrderCancelled: Status.CANCELLED,
    },
    Status.CONFIRMED: {OrderCancelled: Status.CANCELLED},
    Status.REJECTED: {},
    Status.CANCELLED: {},
}
"""The state machine of an order: which events may follow a status (None before the first event) and their result."""

STATUS_AFTER: Mapping[type[Event], Status] = {
    event: status for moves in TRANSITIONS.values() for event, status in moves.items()
}
"""The status that each event results in, which does not depend on the status before it."""


@dataclass(frozen=True)
class Order:
    """The state of an order after `version` events."""

    id: UUID
    user_id: UUID
    status: Status
    currency: str
    lines: tuple[Line, ...]
    total: int
    version: int
    placed_at: datetime


def place(user_id: UUID, currency: str, lines: Sequence[Line], credit_currency: str = "") -> OrderPlaced:
    """Decides to accept an order; raises Invalid with each invalid field.

    `credit_currency` is the currency of the user's credit, if known; otherwise the reservation checks it later.
    """
    errors = {}
    if currency not in CURRENCIES:
        errors["currency"] = "must be an active ISO 4217 code, three capital letters"
    elif credit_currency not in ("", currency):
        errors["currency"] = f"must be {credit_currency}, the currency of your credit"
    if not 1 <= len(lines) <= 100:
        errors["lines"] = "must be 1 to 100 lines"
    for number, line in enumerate(lines[:100]):
        errors |= {f"lines[{number}].{field}": text for field, text in _line_errors(line).items()}
    total = sum(line.quantity * line.unit_price for line in lines)
    if not errors and total > LARGEST_TOTAL:
        errors["lines"] = "must not cost more in all than fits 64 bits"
    if errors:
        raise Invalid(errors)
    return OrderPlaced(user_id, currency, tuple(lines), total)


def confirm(order: Order) -> list[Event]:
    """Decides to confirm an order whose credit is reserved; no event if it is not pending."""
    return [OrderConfirmed()] if OrderConfirmed in TRANSITIONS[order.status] else []


def reject(order: Order, reason: str) -> list[Event]:
    """Decides to reject an order whose credit was denied; no event if it is not pending."""
    return [OrderRejected(reason)] if OrderRejected in TRANSITIONS[order.status] else []


def cancel(order: Order, expected_versions: Collection[int]) -> list[Event]:
    """Decides to cancel; without expected versions at any version. Raises VersionMismatch, OrderClosed."""
    if expected_versions and order.version not in expected_versions:
        raise VersionMismatch(f"the order is at version {order.version}")
    if OrderCancelled not in TRANSITIONS[order.status]:
        raise OrderClosed(f"the order is {order.status}")
    return [OrderCancelled()]


def apply(order: Order | None, event: Event, order_id: UUID, at: datetime) -> Order:
    """Returns the order after an event. A recorded event is a fact, so its place in TRANSITIONS is not checked here."""
    if isinstance(event, OrderPlaced):
        return Order(order_id, event.user_id, Status.PENDING, event.currency, event.lines, event.total, 1, at)
    if order is None:
        raise ValueError("the first event of an order has to be OrderPlaced")
    return replace(order, status=STATUS_AFTER[type(event)], version=order.version + 1)


def _line_errors(line: Line) -> dict[str, str]:
    errors = {}
    if not _SKU.fullmatch(line.sku):
        errors["sku"] = "must be 1 to 64 letters, digits, '.', '_' or '-'"
    if not 1 <= line.quantity <= 10_000:
        errors["quantity"] = "must be 1 to 10000"
    if not 0 <= line.unit_price <= 10**9:
        errors["unit_price"] = "must be 0 to 1000000000"
    return errors
