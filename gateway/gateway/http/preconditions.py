"""Evaluates If-Match and If-None-Match (RFC 9110, 13.1 and 13.2).

The two conditions on dates are ignored, because no resource has a modification date (RFC 9110, 13.1.3 and 13.1.4).
A malformed list of entity tags matches nothing.
"""

from __future__ import annotations

import re

from sanic import Request

from gateway.http.problems import Problem

IF_MATCH = "if-match"
IF_NONE_MATCH = "if-none-match"

_NO_VERSION = 0
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_TAG = r'(W/)?"([^\x00-\x20"\x7f]*)"'
# A list may have empty elements (RFC 9110, 5.6.1). A blank can match in one way only, so no header takes long.
_TAGS = re.compile(rf"[ \t]*(?:{_TAG}[ \t]*)?(?:,[ \t]*(?:{_TAG}[ \t]*)?)*")


def failed(request: Request, etag: str | None, exists: bool = True) -> int | None:
    """Returns the status that answers the request instead, 304 or 412; None if its preconditions hold.

    `etag` is the strong entity tag of the target resource, None without one; `exists` is False if it cannot be read.
    """
    condition = _field(request, IF_MATCH)
    if condition is not None and not _matches(condition, etag, exists, weakly=False):
        return 412
    condition = _field(request, IF_NONE_MATCH)
    if condition is not None and _matches(condition, etag, exists, weakly=True):
        return 304 if request.method in ("GET", "HEAD") else 412
    return None


def require(request: Request, exists: bool) -> None:
    """Raises Problem if a precondition of a request to a resource without an entity tag does not hold."""
    if failed(request, None, exists):
        raise Problem("VERSION_MISMATCH")


def expected_versions(request: Request) -> list[int]:
    """Returns the versions that If-Match allows, none for any version and 0, which no order has, for no version."""
    condition = _field(request, IF_MATCH)
    if condition in (None, "*"):
        return []
    tags = [tag for weak, tag in _tags(condition or "") if not weak]
    return [int(tag) for tag in tags if _VERSION.fullmatch(tag)] or [_NO_VERSION]


def versions_left(request: Request, etag: str, version: int) -> list[int]:
    """Returns the current version if all preconditions hold for it, otherwise 0, which no order has."""
    return [version if failed(request, etag) is None else _NO_VERSION]


def _field(request: Request, name: str) -> str | None:
    lines = request.headers.getall(name, ())
    return ",".join(lines).strip(" \t") if lines else None


def _matches(condition: str, etag: str | None, exists: bool, weakly: bool) -> bool:
    if condition == "*":
        return exists
    return any(etag == f'"{tag}"' for weak, tag in _tags(condition) if weakly or not weak)


def _tags(condition: str) -> list[tuple[str, str]]:
    return re.findall(_TAG, condition) if _TAGS.fullmatch(condition) else []
