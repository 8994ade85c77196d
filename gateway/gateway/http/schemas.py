"""What callers may send: strict models of bodies and queries, and the headers with a meaning of their own.

Invariant: what is unknown or of the wrong type is refused by name before any service sees it.
"""
# ruff: noqa: E501 - a field a line reads as a table

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from sanic import Request

from gateway.http.problems import Problem

M = TypeVar("M", bound=BaseModel)

LAST_EVENT_ID = "Last-Event-ID"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_DIGITS = re.compile(r"[0-9]{1,9}")
_VERSION = re.compile(r"[0-9]{1,18}")
_OF_ORDER = re.compile(r"[1-9][0-9]{0,8}")
_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
# A list may have empty elements (RFC 9110, 5.6.1). There is one way only to match a blank: no header takes long.
_TAGS = re.compile(rf"[ \t]*(?:{_TAG}[ \t]*)?(?:,[ \t]*(?:{_TAG}[ \t]*)?)*")


def _printable(text: str) -> str:
    if not text.strip() or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must have a visible character and no control characters")
    return text


def _digits(text: str) -> str:
    # What int() takes beyond digits (1_0, +1, blanks, digits of other scripts) is more than a number means here.
    if not _DIGITS.fullmatch(text):
        raise ValueError("must be a number, in digits only")
    return text


class Body(BaseModel):
    """A JSON object without surprises."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Registration(Body):
    """Who wants to be registered."""

    email: Annotated[str, StringConstraints(min_length=3, max_length=254, pattern=r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+$")] = Field(description="unique in any case", examples=["ada@example.com"])  # fmt: skip
    name: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)] = Field(examples=["Ada"])  # fmt: skip
    password: Annotated[str, StringConstraints(min_length=8, max_length=256)] = Field(examples=["correct horse"])


class Credentials(Body):
    """Who wants to come in."""

    email: Annotated[str, StringConstraints(min_length=1, max_length=254)] = Field(examples=["ada@example.com"])
    password: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(examples=["correct horse"])


class Line(Body):
    """One position of an order."""

    sku: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(examples=["tea-1"])
    quantity: Annotated[int, Field(ge=1, le=10_000, description="pieces")]
    unit_price: Annotated[int, Field(ge=0, le=10**9, description="of one piece, in minor units")]


class Placement(Body):
    """An order to place."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217", examples=["EUR"])
    lines: Annotated[list[Line], Field(min_length=1, max_length=100)]


class OrderQuery(BaseModel):
    """Which orders to list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["pending", "confirmed", "rejected", "cancelled"] | None = Field(None, description="only these")
    limit: Annotated[int, BeforeValidator(_digits), Field(ge=1, le=100, description="orders in a page")] = 20
    cursor: Annotated[str, Field(max_length=200)] = Field("", description="next_cursor of the page before")


def body(request: Request, model: type[M]) -> M:
    """The body as `model`; raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("UNSUPPORTED_MEDIA_TYPE", headers={"accept-post": "application/json"})
    try:
        wanted = model.model_validate_json(request.body)
    except ValidationError as error:
        raise _refused(error) from None
    if doubled := list(_doubled(json.loads(request.body, object_pairs_hook=_Pairs))):
        raise Problem("INVALID", errors=dict.fromkeys(map(_spelled, doubled), "must be given once"))
    return wanted


def query(request: Request, model: type[M]) -> M:
    """The query string as `model`; an empty value counts as absent. Raises Problem."""
    repeated = [name for name, values in request.args.items() if len(values) > 1]
    if repeated:
        raise Problem("INVALID", errors=dict.fromkeys(repeated, "must be given once"))
    try:
        return model.model_validate({name: values[0] for name, values in request.args.items()})
    except ValidationError as error:
        raise _refused(error) from None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was sent: a dict would keep the last of two equal keys and drop the first unseen."""


def _doubled(value: Any, place: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Where in a body a key stands more than once."""
    seen: set[int | str] = set()
    parts: Iterable[tuple[int | str, Any]] = value if isinstance(value, _Pairs) else enumerate(value)
    for key, inner in parts:
        if key in seen:
            yield (*place, key)
        seen.add(key)
        if isinstance(inner, list):
            yield from _doubled(inner, (*place, key))


def path_id(text: str, reason: str) -> str:
    """A UUID of the path; anything else names nothing, for the `reason` given."""
    if not _UUID.fullmatch(text):
        raise Problem(reason)
    return text.lower()


def idempotency_key(request: Request) -> str:
    """The Idempotency-Key header; raises Problem when it is missing or unusable."""
    key = request.headers.get("idempotency-key", "")
    if not _KEY.fullmatch(key):
        raise Problem("IDEMPOTENCY_KEY_MISSING")
    return key


def if_match(request: Request) -> list[int]:
    """The versions If-Match allows; empty: any. Version 0 never exists, so it stands for tags that match nothing."""
    header = request.headers.get("if-match")
    if header is None or header.strip() == "*":
        return []
    tags = re.findall(_TAG, header) if _TAGS.fullmatch(header) else []
    return [int(tag) for weak, tag in tags if not weak and _OF_ORDER.fullmatch(tag)] or [0]


def last_event_id(request: Request) -> int:
    """The version that Last-Event-ID says the caller has; 0 without one. Raises Problem."""
    header = request.headers.get(LAST_EVENT_ID, "").strip()
    if header and not _VERSION.fullmatch(header):
        raise Problem("INVALID", errors={LAST_EVENT_ID: "must be the id of an event of this order"})
    return int(header or 0)


def _refused(error: ValidationError) -> Problem:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return Problem("MALFORMED", "The body is not valid JSON.")
    return Problem("INVALID", errors={_spelled(problem["loc"]): _said(problem) for problem in problems})


def _spelled(place: Sequence[int | str]) -> str:
    """`("lines", 0, "sku")` as `lines[0].sku`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).lstrip(".") or "body"


def _said(problem: Any) -> str:
    known = {"missing": "is required", "extra_forbidden": "is not known"}
    return known.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")
