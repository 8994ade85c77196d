"""Validates requests: strict models of bodies and queries, and the headers that a route reads.

Invariant: an unknown field or a wrong type is rejected, with its name, before any service is called.
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
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_DIGITS = re.compile(r"[0-9]{1,9}")
_VERSION = re.compile(r"[0-9]{1,18}")
_PRINTABLE = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
_NO_CODING = {"", "identity"}


def _printable(text: str) -> str:
    if not text.strip() or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must have a visible character and no control characters")
    return text


def _digits(text: str) -> str:
    # int() accepts more than digits: 1_0, +1, blanks and digits of other scripts.
    if not _DIGITS.fullmatch(text):
        raise ValueError("must be a number, in digits only")
    return text


class Body(BaseModel):
    """A JSON object with known fields of exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Registration(Body):
    """A user to register."""

    email: Annotated[str, StringConstraints(min_length=3, max_length=254, pattern=r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+$")] = Field(description="unique in any case", examples=["ada@example.com"])  # fmt: skip
    name: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)] = Field(examples=["Ada"], json_schema_extra={"pattern": _PRINTABLE})  # fmt: skip
    password: Annotated[str, StringConstraints(min_length=8, max_length=256)] = Field(examples=["correct horse"])


class Credentials(Body):
    """Email and password of a registered user."""

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
    """Selects a page of orders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["pending", "confirmed", "rejected", "cancelled"] | None = Field(None, description="only these")
    limit: Annotated[int, Field(ge=1, le=100, description="orders in a page"), BeforeValidator(_digits)] = 20
    cursor: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="next_cursor of the page before"
    )


def body(request: Request, model: type[M]) -> M:
    """Returns the body as `model`; raises Problem."""
    codings = {
        coding.strip().lower() for line in request.headers.getall("content-encoding", ()) for coding in line.split(",")
    }
    if codings - _NO_CODING:
        raise Problem(
            "UNSUPPORTED_MEDIA_TYPE", "Send the body without a content coding.", headers={"accept-encoding": "identity"}
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem("UNSUPPORTED_MEDIA_TYPE", headers={"accept-post": "application/json"})
    try:
        parsed = model.model_validate_json(request.body)
    except ValidationError as error:
        raise _invalid(error, "body") from None
    if duplicates := list(_duplicates(json.loads(request.body, object_pairs_hook=_Pairs))):
        raise Problem(
            "INVALID", errors=dict.fromkeys((_field_name(path, "body") for path in duplicates), "must be given once")
        )
    return parsed


def query(request: Request, model: type[M]) -> M:
    """Returns the query string as `model`; an empty value is a value. Raises Problem."""
    found = request.get_args(keep_blank_values=True)
    repeated = [name or "query" for name, values in found.items() if len(values) > 1]
    if repeated:
        raise Problem("INVALID", errors=dict.fromkeys(repeated, "must be given once"))
    try:
        return model.model_validate({name: values[0] for name, values in found.items()})
    except ValidationError as error:
        raise _invalid(error, "query") from None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was sent, because a dict would drop the first of two equal keys."""


def _duplicates(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Yields the path of each key that occurs more than once in its object."""
    seen: set[int | str] = set()
    parts: Iterable[tuple[int | str, Any]] = value if isinstance(value, _Pairs) else enumerate(value)
    for key, inner in parts:
        if key in seen:
            yield (*path, key)
        seen.add(key)
        if isinstance(inner, list):
            yield from _duplicates(inner, (*path, key))


def path_id(text: str, reason: str) -> str:
    """Returns a UUID of the path in lower case; raises Problem with the `reason` if it is none."""
    if not _UUID.fullmatch(text):
        raise Problem(reason)
    return text.lower()


def idempotency_key(request: Request) -> str:
    """Returns the Idempotency-Key header; raises Problem if it is missing or malformed."""
    key = request.headers.get("idempotency-key", "")
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Problem("IDEMPOTENCY_KEY_MISSING")
    return key


def last_event_id(request: Request) -> int:
    """Returns the version in Last-Event-ID, 0 without that header; raises Problem."""
    header = request.headers.get(LAST_EVENT_ID, "0").strip()
    if not _VERSION.fullmatch(header):
        raise Problem("INVALID", errors={LAST_EVENT_ID: "must be the id of an event of this order"})
    return int(header)


def _invalid(error: ValidationError, whole: str) -> Problem:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return Problem("MALFORMED", "The body is not valid JSON.")
    return Problem("INVALID", errors={_field_name(problem["loc"], whole): _message(problem) for problem in problems})


def _field_name(path: Sequence[int | str], whole: str) -> str:
    """Returns `("lines", 0, "sku")` as `lines[0].sku`, and `whole` for an error without a named field."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".") or whole


def _message(problem: Any) -> str:
    known = {"missing": "is required", "extra_forbidden": "is not known"}
    return known.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")
