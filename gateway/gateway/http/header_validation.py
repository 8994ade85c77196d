"""Validates the head of each request before it is routed.

Invariant: an ambiguous request head (request smuggling) gets 400, and the connection is closed.
"""

from __future__ import annotations

import re
from typing import Any

from sanic import Request

from gateway.http.problems import Problem
from gateway.http.sanic_internals import UNREADABLE_METHOD, TolerantRequest

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINES = re.compile(_TOKEN + rb" [^\x00\r\n]+(?:\r\n" + _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*)*")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_SINGLE_HEADERS = ("host", "authorization", "content-type", "idempotency-key", "last-event-id")


class ValidatedRequest(TolerantRequest):
    """A request whose head is valid or was unreadable; the constructor raises Problem."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A caller may also send that method.
        if self.method != UNREADABLE_METHOD or self.head:
            _validate(self)


def _validate(request: Request) -> None:
    if not _LINES.fullmatch(request.head):
        raise Problem("MALFORMED", "The method or a header has characters that may not be in it.")
    for name in _SINGLE_HEADERS:
        if len(request.headers.getall(name, ())) > 1:
            raise Problem("MALFORMED", f"The header {name} may be sent once only.")
    host = request.headers.get("host")
    if host is None and request.version != "1.0":
        raise Problem("MALFORMED", "The header host is missing.")
    if not _HOST.fullmatch((host or "").strip()):
        raise Problem("MALFORMED", "The header host is not the name of a host.")
