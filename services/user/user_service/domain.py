"""Users and their credit: state, rules and refusals. Pure; money is in minor units.

Invariant: what orders hold never exceeds the limit, and an order given back never reserves again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+")
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(map(chr, range(0xFE00, 0xFE10)))
"""Letters, marks and symbols that show nothing by themselves; what else shows nothing has a category that says so."""
_EMPTY = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"))
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Turns the direction of the text behind it, so that one name is shown as another."""


class Refusal(Exception):  # noqa: N818 - an answer, not a defect
    """The rules say no."""


class Invalid(Refusal):
    """`fields` maps each wrong field to what is wrong with it."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(f"not valid: {', '.join(fields)}")
        self.fields = dict(fields)


class EmailTaken(Refusal):
    """Another user has this email, in whatever case."""


class BadCredentials(Refusal):
    """Email and password do not belong together."""


class UserUnknown(Refusal):
    """There is no such user."""


class CreditExceeded(Refusal):
    """The user has less credit left than the order needs."""


class CurrencyMismatch(Refusal):
    """The user's credit is in another currency."""


class ReservationConflict(Refusal):
    """The order holds another amount already, or belongs to another user."""


class ReservationReleased(Refusal):
    """The order was given back before."""


@dataclass(frozen=True)
class Credit:
    """A user's credit: never less than nothing is available."""

    currency: str
    limit: int
    held: int

    @property
    def available(self) -> int:
        return max(0, self.limit - self.held)


@dataclass(frozen=True)
class User:
    """A registered person."""

    id: UUID
    email: str
    name: str
    credit: Credit


class State(StrEnum):
    """Of a reservation; released is final."""

    HELD = "held"
    RELEASED = "released"


@dataclass(frozen=True)
class Reservation:
    """What one order holds of one user's credit."""

    order_id: UUID
    user_id: UUID
    amount: int
    state: State

    @property
    def holds(self) -> int:
        return self.amount if self.state is State.HELD else 0


def email_key(email: str) -> str:
    """The email as it is compared: two spellings of one address have one key."""
    return unicodedata.normalize("NFKC", email.strip()).casefold()


def may_be_email(text: str) -> bool:
    """Whether anybody can have it: no email has a control character, and the accounts cannot be asked for a NUL."""
    return _clean(text.strip())


def check_registration(email: str, name: str, password: str) -> None:
    """Refuse what cannot be registered, naming each field."""
    wrong = {}
    if not 3 <= len(email) <= 254 or not _EMAIL.fullmatch(email) or not all(map(_visible, email)):
        wrong["email"] = "must be an email address of at most 254 characters, each of them visible"
    if not 1 <= len(name.strip()) <= 200 or not _clean(name) or not any(map(_visible, name)):
        wrong["name"] = "must have 1 to 200 characters, one of them visible and none a control character"
    if not 8 <= len(password) <= 256:
        wrong["password"] = "must have 8 to 256 characters"  # noqa: S105 - a sentence
    if wrong:
        raise Invalid(wrong)


def reserve(credit: Credit, known: Reservation | None, wanted: Reservation, currency: str) -> Reservation:
    """The reservation to keep for `wanted`; the one already known when nothing changes."""
    if known is not None:
        return _again(known, wanted)
    if currency != credit.currency:
        raise CurrencyMismatch(f"the credit is in {credit.currency}")
    if wanted.amount > credit.available:
        raise CreditExceeded(f"{credit.available} of {credit.limit} is available")
    return wanted


def release(known: Reservation | None, order_id: UUID, user_id: UUID) -> Reservation:
    """The released reservation to keep; an order that never reserved gets one too, so that it never will."""
    if known is not None and known.user_id != user_id:
        raise ReservationConflict("the order belongs to another user")
    return Reservation(order_id, user_id, known.amount if known else 0, State.RELEASED)


def _again(known: Reservation, wanted: Reservation) -> Reservation:
    if known.user_id != wanted.user_id:
        raise ReservationConflict("the order belongs to another user")
    if known.state is State.RELEASED:
        raise ReservationReleased("the order was given back")
    if known.amount != wanted.amount:
        raise ReservationConflict(f"the order holds {known.amount}")
    return known


def _clean(text: str) -> bool:
    return not any(unicodedata.category(each) in ("Cc", "Cs") or each in _TURNS for each in text)


def _visible(character: str) -> bool:
    return unicodedata.category(character) not in _EMPTY and character not in _BLANK
