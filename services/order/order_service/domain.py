"""Orders: what may happen to one (decide, which may refuse) and what it is afterwards (apply, which never refuses).

Pure; money is in minor units. Invariant: an order is nothing but the fold of its events.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from iso4217 import Currency

_SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CURRENCIES = frozenset(each.code for each in Currency if each.exponent is not None)
"""The active codes of ISO 4217 that have a minor unit: gold, test codes and "no currency" are no money to pay with."""
LARGEST_TOTAL = 2**63 - 1
REQUESTED = "REQUESTED"
"""Why an order was cancelled: its user asked for it."""


class Refusal(Exception):  # noqa: N818 - an answer, not a defect
    """The rules say no."""


class Invalid(Refusal):
    """`fields` maps each wrong field to what is wrong with it."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(f"not valid: {', '.join(fields)}")
        self.fields = dict(fields)


class OrderUnknown(Refusal):
    """The user has no such order."""


class OrderClosed(Refusal):
    """The state of the order does not allow it any more."""


class VersionMismatch(Refusal):
    """The order is at none of the versions the caller expects."""


class Status(StrEnum):
    """Where an order stands; rejected and cancelled are final."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the order any more."""
        return self in (Status.REJECTED, Status.CANCELLED)


@dataclass(frozen=True)
class Line:
    """One position of an order."""

    sku: str
    quantity: int
    unit_price: int


@dataclass(frozen=True)
class OrderPlaced:
    """A user wants these lines."""

    user_id: UUID
    currency: str
    lines: tuple[Line, ...]
    total: int


@dataclass(frozen=True)
class OrderConfirmed:
    """The credit is reserved."""


@dataclass(frozen=True)
class OrderRejected:
    """The credit was refused."""

    reason: str


@dataclass(frozen=True)
class OrderCancelled:
    """It is not wanted any more."""

    reason: str = REQUESTED


Event = OrderPlaced | OrderConfirmed | OrderRejected | OrderCancelled


@dataclass(frozen=True)
class Order:
    """An order after `version` events."""

    id: UUID
    user_id: UUID
    status: Status
    currency: str
    lines: tuple[Line, ...]
    total: int
    version: int
    placed_at: datetime


def place(user_id: UUID, currency: str, lines: Sequence[Line], credit_currency: str = "") -> OrderPlaced:
    """Decide to accept an order; raises Invalid naming each field.

    An order in another currency than the user's credit is refused here where that is known, else at its reservation.
    """
    wrong = {}
    if currency not in CURRENCIES:
        wrong["currency"] = "must be an active ISO 4217 code, three capital letters"
    elif credit_currency not in ("", currency):
        wrong["currency"] = f"must be {credit_currency}, the currency of your credit"
    if not 1 <= len(lines) <= 100:
        wrong["lines"] = "must be 1 to 100 lines"
    for number, line in enumerate(lines[:100]):
        wrong |= {f"lines[{number}].{field}": text for field, text in _wrong_in(line).items()}
    total = sum(line.quantity * line.unit_price for line in lines)
    if not wrong and total > LARGEST_TOTAL:
        wrong["lines"] = "must not cost more in all than fits 64 bits"
    if wrong:
        raise Invalid(wrong)
    return OrderPlaced(user_id, currency, tuple(lines), total)


def confirm(order: Order) -> list[Event]:
    """Decide that the credit is reserved; nothing happens to an order that is not pending any more."""
    return [OrderConfirmed()] if order.status is Status.PENDING else []


def reject(order: Order, reason: str) -> list[Event]:
    """Decide that the credit was refused; nothing happens to an order that is not pending any more."""
    return [OrderRejected(reason)] if order.status is Status.PENDING else []


def cancel(order: Order, expected_versions: Collection[int]) -> list[Event]:
    """Decide to cancel; no expected versions means whatever it has. Raises VersionMismatch, OrderClosed."""
    if expected_versions and order.version not in expected_versions:
        raise VersionMismatch(f"the order is at version {order.version}")
    if order.status.final:
        raise OrderClosed(f"the order is {order.status}")
    return [OrderCancelled()]


def apply(order: Order | None, event: Event, order_id: UUID, at: datetime) -> Order:
    """The order after the event that happened at a time."""
    if isinstance(event, OrderPlaced):
        return Order(order_id, event.user_id, Status.PENDING, event.currency, event.lines, event.total, 1, at)
    if order is None:
        raise ValueError("a history begins with OrderPlaced")
    return replace(order, status=_AFTER[type(event)], version=order.version + 1)


_AFTER: Mapping[type[Event], Status] = {
    OrderConfirmed: Status.CONFIRMED,
    OrderRejected: Status.REJECTED,
    OrderCancelled: Status.CANCELLED,
}


def _wrong_in(line: Line) -> dict[str, str]:
    wrong = {}
    if not _SKU.fullmatch(line.sku):
        wrong["sku"] = "must be 1 to 64 letters, digits, '.', '_' or '-'"
    if not 1 <= line.quantity <= 10_000:
        wrong["quantity"] = "must be 1 to 10000"
    if not 0 <= line.unit_price <= 10**9:
        wrong["unit_price"] = "must be 0 to 1000000000"
    return wrong
