"""What the head of a request must be like before anything else looks at it, and which methods a path takes.

Invariant: a head that two readers could understand in two ways is refused (400), and its connection ends.
"""

from __future__ import annotations

import re
from typing import Any

from sanic import Request
from sanic.compat import Header
from sanic.exceptions import BadURL
from sanic.router import Router

from gateway.http.problems import Problem

UNREADABLE = "NONE"
"""The method that Sanic gives a request whose head could not be read."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINES = re.compile(_TOKEN + rb" [^\x00\r\n]+(?:\r\n" + _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*)*")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ONCE = ("host", "authorization", "content-type", "idempotency-key", "last-event-id")


class Head(Request):
    """A request whose head was looked at; raises Problem."""

    def __init__(self, url_bytes: bytes, headers: Header, version: str, method: str, *args: Any, **more: Any) -> None:
        try:
            super().__init__(url_bytes, headers, version, method, *args, **more)
        except BadURL:
            if method != UNREADABLE:
                raise
            super().__init__(b"*", headers, version, method, *args, **more)
        if method != UNREADABLE:
            _check(self)


class Verbs(Router):
    """Routes HEAD as GET: the body is left out where the answer is written."""

    def _get(self, path: str, method: str, host: str | None) -> Any:
        return super()._get(path, "GET" if method == "HEAD" else method, host)


def _check(request: Request) -> None:
    if not _LINES.fullmatch(request.head):
        raise Problem("MALFORMED", "The method or a header has characters that may not be in it.")
    for name in _ONCE:
        if len(request.headers.getall(name, ())) > 1:
            raise Problem("MALFORMED", f"The header {name} may be sent once only.")
    host = request.headers.get("host")
    if host is None and request.version != "1.0":
        raise Problem("MALFORMED", "The header host is missing.")
    if not _HOST.fullmatch((host or "").strip()):
        raise Problem("MALFORMED", "The header host is not the name of a host.")
