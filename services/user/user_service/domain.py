"""Users and their credit: state, rules and errors, without I/O. Money is in minor units.

Invariant: the sum that orders hold never exceeds the limit, and a released order never reserves again.
"""
# ruff: noqa: N818 - an error is named after the broken rule

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+")
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(map(chr, range(0xFE00, 0xFE10)))
"""Invisible letters, marks and symbols. All other invisible characters are in the categories of `_EMPTY`."""
_EMPTY = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"))
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them, so that one name is displayed as another."""


class DomainError(Exception):
    """A rule of the domain forbids the request."""


class Invalid(DomainError):
    """Some fields are invalid; `fields` maps each to a message."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(f"not valid: {', '.join(fields)}")
        self.fields = dict(fields)


class EmailTaken(DomainError):
    """Another user has this email, perhaps in another case."""


class BadCredentials(DomainError):
    """Email and password do not belong together."""


class UserUnknown(DomainError):
    """There is no such user."""


class CreditExceeded(DomainError):
    """The available credit is less than the order needs."""


class CurrencyMismatch(DomainError):
    """The user's credit is in another currency."""


class ReservationConflict(DomainError):
    """The order holds another amount already, or belongs to another user."""


class ReservationReleased(DomainError):
    """The reservation of the order was released before."""


@dataclass(frozen=True)
class Credit:
    """A user's credit; the available part is never negative."""

    currency: str
    limit: int
    held: int

    @property
    def available(self) -> int:
        return max(0, self.limit - self.held)


@dataclass(frozen=True)
class User:
    """A registered user."""

    id: UUID
    email: str
    name: str
    credit: Credit


class State(StrEnum):
    """State of a reservation; released is final."""

    HELD = "held"
    RELEASED = "released"


@dataclass(frozen=True)
class Reservation:
    """The amount that an order holds, or held, of a user's credit."""

    order_id: UUID
    user_id: UUID
    amount: int
    state: State

    @property
    def held_amount(self) -> int:
        return self.amount if self.state is State.HELD else 0


def email_key(email: str) -> str:
    """Returns the form of an email that is compared: spellings of the same address have the same key."""
    return unicodedata.normalize("NFKC", email.strip()).casefold()


def may_be_email(text: str) -> bool:
    """True if the text can be an email: none has a control character, and Postgres rejects a NUL."""
    return _clean(text.strip())


def check_registration(email: str, name: str, password: str) -> None:
    """Raises Invalid with each field that breaks a rule."""
    errors = {}
    if not 3 <= len(email) <= 254 or not _EMAIL.fullmatch(email) or not all(map(_visible, email)):
        errors["email"] = "must be an email address of at most 254 characters, each of them visible"
    if not 1 <= len(name.strip()) <= 200 or not _clean(name) or not any(map(_visible, name)):
        errors["name"] = "must have 1 to 200 characters, one of them visible and none a control character"
    if not 8 <= len(password) <= 256:
        errors["password"] = "must have 8 to 256 characters"  # noqa: S105 - a sentence
    if errors:
        raise Invalid(errors)


def reserve(credit: Credit, stored: Reservation | None, requested: Reservation, currency: str) -> Reservation:
    """Returns the reservation to store, which is the stored one if the same request is repeated.

    Raises CurrencyMismatch, CreditExceeded, ReservationConflict, ReservationReleased.
    """
    if stored is not None:
        return _repeated(stored, requested)
    if currency != credit.currency:
        raise CurrencyMismatch(f"the credit is in {credit.currency}")
    if requested.amount > credit.available:
        raise CreditExceeded(f"{credit.available} of {credit.limit} is available")
    return requested


def release(stored: Reservation | None, order_id: UUID, user_id: UUID) -> Reservation:
    """Returns the released reservation to store, also for an order without one, so that it cannot reserve later.

    Raises ReservationConflict for an order of another user.
    """
    if stored is not None and stored.user_id != user_id:
        raise ReservationConflict("the order belongs to another user")
    return Reservation(order_id, user_id, stored.amount if stored else 0, State.RELEASED)


def _repeated(stored: Reservation, requested: Reservation) -> Reservation:
    if stored.user_id != requested.user_id:
        raise ReservationConflict("the order belongs to another user")
    if stored.state is State.RELEASED:
        raise ReservationReleased("the credit of the order was released")
    if stored.amount != requested.amount:
        raise ReservationConflict(f"the order holds {stored.amount}")
    return stored


def _clean(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI_CONTROLS for character in text)


def _visible(character: str) -> bool:
    return unicodedata.category(character) not in _EMPTY and character not in _BLANK
